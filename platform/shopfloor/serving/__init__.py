"""The Ray Serve application and what puts a model version on it."""

"""Whether a model is good enough: metrics, the test set, gates, golden requests, the live gates."""

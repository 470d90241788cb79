"""The DAGs, and a folder for each use case."""

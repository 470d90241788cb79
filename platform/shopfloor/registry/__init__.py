"""Versions of models in MLflow, and the passport of each."""

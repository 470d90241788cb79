"""Runs in MLflow: how MLflow is asked, how a run is recorded, found again and concluded."""

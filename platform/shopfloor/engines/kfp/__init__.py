"""The Kubeflow Pipelines backend as an engine."""

"""The steps of the pipelines: one typed KFP component a file."""

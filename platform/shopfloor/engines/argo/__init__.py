"""The `argo` engine's translator: from KFP's intermediate representation to one Argo Workflow."""

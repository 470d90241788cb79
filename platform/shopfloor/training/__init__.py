"""The search for a model on Ray: trials, the cluster that they run on, here or as a RayJob of its own."""

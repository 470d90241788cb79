"""The protocols beside `/predict`: MLflow's scoring protocol and the Open Inference Protocol."""

"""The trainer: thin wrappers around TRL's GRPOTrainer. The only room that imports trl."""

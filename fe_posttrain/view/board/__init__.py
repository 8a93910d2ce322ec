"""The run in wandb: a mirror of the run folder, and the dashboard that shows it."""

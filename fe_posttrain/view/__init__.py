"""What a person sees of a run: the terminal, report.html, wandb, a model card. Reads run folders only."""

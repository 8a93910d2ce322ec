"""Tasks: prompts, verifiers and demonstrations. The embedded testbed is digits, tokenizer, pretraining, exact."""

"""The card beside a model."""

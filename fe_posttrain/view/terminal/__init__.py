"""The run in a terminal, while it trains and when it ends."""

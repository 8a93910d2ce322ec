"""Tracking: how far training moves what the policy can reach, while it trains."""

"""Accessible support: pure statistics of counts and log-weights, on NumPy and SciPy; README.md explains each number."""

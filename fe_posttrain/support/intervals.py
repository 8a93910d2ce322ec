"""Bounds on a probability from counts of a fixed number of draws, and pass@k."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv
from scipy.stats import hypergeom


def checked(correct: ArrayLike, drawn: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both as whole numbers of one shape.

    Raises:
        ValueError: a count that is negative, no whole number, or larger than what was drawn; it says which.
    """
    hits, draws = np.broadcast_arrays(np.asarray(correct, dtype=float), np.asarray(drawn, dtype=float))
    whole = (hits == np.floor(hits)) & (draws == np.floor(draws)) & np.isfinite(draws)
    wrong = ~(whole & (hits >= 0) & (hits <= draws))
    if wrong.any():
        row = int(np.flatnonzero(wrong.ravel())[0])
        raise ValueError(
            f"row {row}: {hits.ravel()[row]:g} correct of {draws.ravel()[row]:g} drawn; counts are whole numbers with "
            "0 <= correct <= drawn; mend that row"
        )
    return hits.astype(np.int64), draws.astype(np.int64)


def pass_at_k(correct: ArrayLike, drawn: ArrayLike, k: int) -> NDArray:
    """Chen et al.'s unbiased pass@k = 1 - C(n-c, k) / C(n, k), for each prompt (2021, arXiv:2107.03374).

    Raises:
        ValueError: bad counts; k is no whole number of 1 or more, or exceeds what was drawn of a prompt: no unbiased
            estimate exists.
    """
    hits, draws = checked(correct, drawn)
    if k < 1 or k != int(k):
        raise ValueError(f"pass@{k}: k counts draws; write a whole number of 1 or more")
    if (draws < k).any():
        raise ValueError(f"pass@{k}: {draws.min()} draws of a prompt; no unbiased estimate beyond that; lower k")
    return 1.0 - hypergeom.pmf(0, draws, hits, k)


def lower_bound(correct: ArrayLike, drawn: ArrayLike, level: ArrayLike) -> NDArray:
    """One-sided Clopper-Pearson: exceeds p with probability `level` at most, at a *fixed* number of draws."""
    hits, draws = checked(correct, drawn)
    found = betaincinv(np.maximum(hits, 1), draws - hits + 1.0, level)
    return np.where(hits == 0, 0.0, found)


def upper_bound(correct: ArrayLike, drawn: ArrayLike, level: ArrayLike) -> NDArray:
    """One-sided Clopper-Pearson: falls below p with probability `level` at most, at a *fixed* number of draws."""
    hits, draws = checked(correct, drawn)
    found = betaincinv(hits + 1.0, np.maximum(draws - hits, 1), 1 - np.asarray(level))
    return np.where(hits == draws, 1.0, found)

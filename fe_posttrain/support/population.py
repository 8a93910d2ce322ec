"""The distribution of p over prompts: its nonparametric maximum likelihood estimate, and what is read off it.

A description of a population of prompts, without bounds. Counts alone say little about single hard prompts; over many
of them they say how the mass of p is spread.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fe_posttrain.support.intervals import checked

_STEPS = 2000
_TOLERANCE = 1e-3  # of the optimality condition: no p would add more than this share of likelihood


@dataclass(frozen=True)
class Population:
    """Weights (k,) of probabilities p (k,), ascending."""

    p: NDArray
    weight: NDArray

    def cover(self, threshold: float) -> float:
        """Cover@p*: the share of prompts with p >= threshold."""
        return float(self.weight[self.p >= threshold].sum())

    def quantile(self, share: ArrayLike) -> NDArray:
        """The p below or at which `share` of the prompts lie: the quantile curve."""
        reached = np.searchsorted(np.cumsum(self.weight), np.asarray(share) - 1e-9)
        return self.p[np.minimum(reached, len(self.p) - 1)]


def grid() -> NDArray:
    """0, 1e-6 ... 1 - 1e-3 evenly in logit p, and 1."""
    return np.concatenate([[0.0], 1 / (1 + np.exp(-np.linspace(-13.8, 6.9, 120))), [1.0]])


def npmle(correct: ArrayLike, drawn: ArrayLike) -> Population:
    """Nonparametric MLE of the mixing distribution of binomial counts, by EM on a fixed grid.

    Args:
        correct, drawn: (M,) hits and draws; draws may differ, and may have been stopped by what they showed (the
            likelihood is the same).

    Stops when no grid point would raise the likelihood by more than .1 % (the directional derivative of Lindsay 1983),
    or after 2,000 steps.
    """
    hits, draws = checked(correct, drawn)
    pairs, count = np.unique(np.stack([hits, draws]), axis=1, return_counts=True)
    p = grid()
    with np.errstate(divide="ignore", invalid="ignore"):
        log_p = np.where(pairs[0][:, None] > 0, pairs[0][:, None] * np.log(p), 0.0)
        misses = (pairs[1] - pairs[0])[:, None]
        log_p = log_p + np.where(misses > 0, misses * np.log1p(-p), 0.0)
    likelihood = np.exp(log_p - log_p.max(1, keepdims=True))
    share = count / count.sum()
    weight = np.full(len(p), 1 / len(p))
    for _ in range(_STEPS):
        slope = (share / (likelihood @ weight)) @ likelihood  # 1 wherever the optimum has mass, below elsewhere
        weight = weight * slope
        if slope.max() < 1 + _TOLERANCE:
            break
    return Population(p, weight / weight.sum())

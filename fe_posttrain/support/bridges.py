"""Whether log-weights between two models can be believed: normalisation, overlap, tails.

Reference and policy are both normalised, so the log of the ratio of their normalisers is 0. Bennett's acceptance ratio
estimates it from samples of both; another value means that the log-probs are not those of the laws that were drawn
from (another temperature, a truncated sampler, an end token left out), and claims from log-weights are void.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from scipy.special import expit, logsumexp

LARGEST = 0.1  # nats: |df| beyond this, and beyond 2 se, fails; a larger se decides nothing


@dataclass(frozen=True)
class Bar:
    """Estimate of ln(Z_policy/Z_reference) and its standard error, nats; both NaN without overlap."""

    df: float
    se: float

    @property
    def verdict(self) -> str:
        """ "failed" if |df| > max(2 se, .1); else "not checked" if se > .1 or there is no overlap; else "passed"."""
        if not (np.isfinite(self.df) and np.isfinite(self.se)):
            return "not checked"
        if abs(self.df) > max(2 * self.se, LARGEST):
            return "failed"
        return "not checked" if self.se > LARGEST else "passed"


def bar(of_reference: ArrayLike, of_policy: ArrayLike) -> Bar:
    """Bennett acceptance ratio (1976) between two laws from samples of both.

    Args:
        of_reference: (n,) ln(pi/ref) of completions drawn from the reference.
        of_policy: (m,) ln(pi/ref) of completions drawn from the policy.

    A constant c added to every log-prob of the policy gives df = c.

    Raises:
        ValueError: no samples on a side, or a log-ratio that is not finite; it says which row.
    """
    sides = [np.asarray(of_reference, dtype=float), np.asarray(of_policy, dtype=float)]
    for name, side in zip(("reference", "policy"), sides, strict=True):
        if len(side) == 0:
            raise ValueError(f"bar: no draws of the {name}; both sides are needed")
        if not np.isfinite(side).all():
            row = int(np.flatnonzero(~np.isfinite(side))[0])
            raise ValueError(f"bar: row {row} of the {name}'s draws has ln(pi/ref) = {side[row]}; check its log-probs")
    before, after = sides
    shift = np.log(len(after) / len(before))

    def weights(df: float) -> tuple[np.ndarray, np.ndarray]:
        return expit(before - df + shift), expit(-(after - df + shift))

    def excess(df: float) -> float:
        left, right = weights(df)
        return float(left.sum() - right.sum())

    low = min(before.min(), after.min()) - 50
    high = max(before.max(), after.max()) + 50
    if not excess(low) > 0 > excess(high):
        return Bar(float("nan"), float("nan"))
    df = float(brentq(excess, low, high, xtol=1e-12))
    variance = sum((np.mean(w**2) / np.mean(w) ** 2 - 1) / len(w) for w in weights(df))
    return Bar(df, float(np.sqrt(max(0.0, variance))))


def effective_sample_size(log_weights: ArrayLike) -> float:
    """(sum w)^2 / sum w^2 from ln w; it cannot see what was never drawn."""
    log_w = np.asarray(log_weights, dtype=float)
    return float(np.exp(2 * logsumexp(log_w) - logsumexp(2 * log_w)))


def psis_khat(log_weights: ArrayLike) -> float:
    """Pareto tail index of importance weights (Vehtari et al. 2024); point estimates are unreliable beyond .7."""
    from arviz_stats.base import array_stats  # costs a CPU-second

    return float(array_stats.psislw(-np.asarray(log_weights, dtype=float))[1])

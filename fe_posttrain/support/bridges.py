"""Bridges between two laws: is the log-ratio that everything else builds on right, and how heavy are its tails?

Work is ln pi(y) - ln ref(y) of a completion y, in nats, one number a completion. Reference and policy are both
normalised, so the Bennett acceptance ratio (BAR) between samples of the two must find a free-energy difference of 0.
What it finds instead is an error of the log-probs: another temperature, a cut token, a shifted mask.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import log_expit, logsumexp

TOLERANCE = 0.1  # nats: an error above it voids what is claimed, a standard error above it is no check
_LEAST_FOR_TAIL = 25  # PSIS fits a fifth of the weights (3 sqrt(N) of many) and needs 5


@dataclass(frozen=True)
class Bar:
    """The log-normaliser error `df` of policy against reference and its asymptotic standard error `se`, both in nats.

    `df` is c if ln pi carries an added constant c, -c if ln ref does. `se` is infinite where the samples do not meet.
    """

    df: float
    se: float

    @property
    def verdict(self) -> Literal["passed", "failed", "not checked"]:
        """failed: |df| > max(2 se, .1), ledger claims are void; not checked: else, if se > .1; passed: otherwise."""
        if not np.isfinite(self.se):
            return "not checked"
        if abs(self.df) > max(2 * self.se, TOLERANCE):
            return "failed"
        return "not checked" if self.se > TOLERANCE else "passed"


def bar(reference_work: ArrayLike, policy_work: ArrayLike) -> Bar:
    """Bennett acceptance ratio between n_r completions of the reference and n_t of the policy.

    With s(y) = work(y) - df + ln(n_t / n_r) and the logistic function sigma, df solves

        sum over reference completions of sigma(s)  =  sum over policy completions of sigma(-s)

    and, with f the summands of either side,  se^2 = sum over both sides of [ mean(f^2) / mean(f)^2 - 1 ] / n.

    Args:
        reference_work: ln pi(y) - ln ref(y) of completions drawn from the *reference*, shape (n_r,), nats.
        policy_work: the same ratio, with the same sign, of completions drawn from the *policy*, shape (n_t,).

    Raises:
        ValueError: no rows, or a work that is NaN or infinite; it says which.

    Source: Bennett 1976, J. Comput. Phys. 22, 245, eq. 12 and eq. 10a as corrected in pymbar 4 (method "BAR").
    """
    drawn = _finite("reference_work", reference_work), _finite("policy_work", policy_work)
    (reference, policy), shift = drawn, np.log(drawn[1].size / drawn[0].size)

    def accepted(df: float) -> tuple[NDArray, NDArray]:
        """ln of the summands of either side."""
        return log_expit(reference - df + shift), log_expit(-(policy - df + shift))

    def imbalance(df: float) -> float:
        """Falls in df, and does not underflow where the two samples are far apart."""
        left, right = accepted(df)
        return logsumexp(left) - logsumexp(right)

    works = np.concatenate(drawn)
    df = brentq(imbalance, works.min() - 1, works.max() + 1, xtol=1e-12)  # at either end all works lie on one side
    if max(policy.min() - reference.max(), reference.min() - policy.max()) > TOLERANCE:
        return Bar(df, np.inf)  # no completion of the one looks like one of the other: df is extrapolated
    variance = sum(np.exp(logsumexp(2 * f) - 2 * logsumexp(f)) - 1 / f.size for f in accepted(df))
    return Bar(df, float(np.sqrt(max(variance, 0.0))))


def psis_khat(log_weights: ArrayLike) -> float:
    """Shape k of the generalised Pareto law fitted to the largest weights (PSIS).

    Below .5 the weights have a variance, below about .7 a mean over them can be used (at 1 there is none). It gates
    point estimates, not bounds. -inf if the largest weights are all equal (no tail at all); NaN if a tail cannot be
    fitted: fewer than 25 weights, all of them 0, or a quarter of the tail tied with what lies below it.

    Args:
        log_weights: ln of the weights up to a constant, shape (N,); -inf is a weight of 0.

    Raises:
        ValueError: a log-weight that is NaN or +inf; it says which.

    Source: Vehtari et al. 2024, JMLR 25(72); arviz-stats, whose psislw takes *minus* the log-weights.
    """
    from arviz_stats.base import array_stats  # a CPU-second, for those who ask

    weights = np.sort(_log_weights(log_weights))
    if weights.size < _LEAST_FOR_TAIL or weights[-1] == -np.inf:
        return np.nan
    size = _tail_size(weights.size)
    tail, below = weights[-size:], weights[-size - 1]
    if tail[0] == tail[-1]:
        return -np.inf
    if tail[int(size / 4 + 0.5) - 1] == below:  # the fit divides by this quartile's distance from what is below
        return np.nan
    return float(array_stats.psislw(-weights)[1])


def effective_sample_size(log_weights: ArrayLike) -> float:
    """(sum w)^2 / sum w^2: how many equal weights would vary as much; 1 to N, and 0 if every weight is 0.

    Args:
        log_weights: ln of the weights up to a constant, shape (N,); -inf is a weight of 0.

    Raises:
        ValueError: a log-weight that is NaN or +inf; it says which.

    It cannot see a mode that no sample visited. Source: Kong 1992.
    """
    weights = _log_weights(log_weights)
    if not np.isfinite(weights).any():
        return 0.0
    return float(np.exp(2 * logsumexp(weights) - logsumexp(2 * weights)))


def _tail_size(count: int) -> int:
    """How many of the largest weights PSIS takes for the tail."""
    return int(3 * count**0.5) if count > 225 else count // 5


def _finite(name: str, values: ArrayLike) -> NDArray:
    array = np.asarray(values, dtype=float).ravel()
    if array.size == 0:
        raise ValueError(f"{name}: no rows; BAR needs completions of both models; draw some, or do not check")
    _refuse(name, array, np.isfinite(array), "ln pi - ln ref is a number for whatever was drawn")
    return array


def _log_weights(values: ArrayLike) -> NDArray:
    array = np.asarray(values, dtype=float).ravel()
    _refuse("log_weights", array, array < np.inf, "a weight is finite, and 0 at -inf")
    return array


def _refuse(name: str, array: NDArray, sound: NDArray, why: str) -> None:
    if not sound.all():
        row = int(np.argmin(sound))
        raise ValueError(f"{name}: row {row} is {array[row]}; {why}; mend or leave out that row")

"""E-values for "p is above" and "p is below", valid at any stopping time, and what they certify over many prompts.

An e-value against a hypothesis has mean 1 at most under it; 1/e is a p-value at whatever moment one looks. Draws are
independent given the past and of one unknown probability p, as those of a frozen reference are.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, betaln

from fe_posttrain.support.intervals import checked

_ABOVE = (0.1, 1.0)  # Beta prior of alternatives above p0: nearly uniform in ln p
_BELOW = (0.5, 0.5)  # and below p0,
_ZERO = 0.95  # beside this weight on p = 0: ninety-five of a hundred times, what is absent is absent
_HALVINGS = 60


def log_e_above(correct: ArrayLike, drawn: ArrayLike, p0: ArrayLike) -> NDArray:
    """ln e-value against p <= p0: the likelihood at p0 against its mean over p > p0 (prior Beta(.1, 1), truncated).

    Raises:
        ValueError: bad counts, or p0 not strictly between 0 and 1; it says which.
    """
    hits, draws = checked(correct, drawn)
    p0 = _inside(p0)
    a, b = _ABOVE
    with np.errstate(divide="ignore"):
        posterior = betaln(a + hits, b + draws - hits) + np.log(betaincc(a + hits, b + draws - hits, p0))
        prior = betaln(a, b) + np.log(betaincc(a, b, p0))
    return posterior - prior - _log_likelihood(hits, draws, p0)


def log_e_below(correct: ArrayLike, drawn: ArrayLike, p0: ArrayLike) -> NDArray:
    """ln e-value against p >= p0: .95 on p = 0 and .05 on Beta(.5, .5) truncated to p < p0.

    N draws without a hit give .95 (1-p0)^-N at least. Errors as `log_e_above`.
    """
    hits, draws = checked(correct, drawn)
    p0 = _inside(p0)
    a, b = _BELOW
    with np.errstate(divide="ignore"):
        posterior = betaln(a + hits, b + draws - hits) + np.log(betainc(a + hits, b + draws - hits, p0))
        prior = betaln(a, b) + np.log(betainc(a, b, p0))
        spread = np.log1p(-_ZERO) + posterior - prior
        zero = np.where(hits == 0, np.log(_ZERO), -np.inf)
    return np.logaddexp(spread, zero) - _log_likelihood(hits, draws, p0)


def anytime_lower_bound(correct: ArrayLike, drawn: ArrayLike, level: float) -> NDArray:
    """Largest p0 whose "p <= p0" has an e-value of 1/level: above p at *any* time with at most that probability."""
    hits, draws = checked(correct, drawn)
    return _boundary(lambda p0: log_e_above(hits, draws, p0) >= -np.log(level), hits, rejected_at_bottom=True)


def anytime_upper_bound(correct: ArrayLike, drawn: ArrayLike, level: float) -> NDArray:
    """Smallest p0 whose "p >= p0" has an e-value of 1/level: below p at *any* time with at most that probability."""
    hits, draws = checked(correct, drawn)
    return _boundary(lambda p0: log_e_below(hits, draws, p0) >= -np.log(level), hits, rejected_at_bottom=False)


def e_bh(e_values: ArrayLike, alpha: float) -> NDArray:
    """Hypotheses rejected by e-BH: those with e >= M / (alpha k) for the largest k that has as many of them.

    Controls the false discovery rate at alpha under any dependence (Wang & Ramdas 2022), for current e-values at
    declared moments; running maxima are not e-values.

    Raises:
        ValueError: an e-value that is NaN or negative (a NaN would be ranked first); it says which.
    """
    e = np.asarray(e_values, dtype=float)
    _refuse("e_values", e, e >= 0, "an e-value is 0 or more")
    if e.size == 0:
        return np.zeros(e.shape, dtype=bool)
    ordered = np.sort(e, axis=None)[::-1]
    count = np.arange(1, e.size + 1)
    enough = np.flatnonzero(ordered * count >= e.size / alpha)
    return e >= ordered[enough[-1]] if enough.size else np.zeros(e.shape, dtype=bool)


def _inside(p0: ArrayLike) -> NDArray:
    p = np.asarray(p0, dtype=float)
    _refuse("p0", p, (p > 0) & (p < 1), "at 0 and 1 the hypothesis has no likelihood to compare with")
    return p


def _refuse(name: str, array: NDArray, sound: NDArray, why: str) -> None:
    if not sound.all():
        row = int(np.argmin(sound.ravel()))
        raise ValueError(f"{name}: row {row} is {array.ravel()[row]}; {why}; mend or leave out that row")


def _log_likelihood(hits: NDArray, draws: NDArray, p0: NDArray) -> NDArray:
    return hits * np.log(p0) + (draws - hits) * np.log1p(-p0)


def _boundary(rejected, shaped_like: NDArray, *, rejected_at_bottom: bool) -> NDArray:
    """Bisection in ln p0 for the edge of the rejected p0, on its cautious side."""
    low = np.full(shaped_like.shape, np.log(1e-15))
    high = np.full(shaped_like.shape, np.log1p(-1e-12))
    at_end = rejected(np.exp(low if rejected_at_bottom else high))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        inside = rejected(np.exp(middle)) == rejected_at_bottom
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    if rejected_at_bottom:
        return np.where(at_end, np.exp(low), 0.0)
    return np.where(at_end, np.exp(high), 1.0)

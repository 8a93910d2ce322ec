"""Displacement: how far k updates moved what the policy reaches, in nats.

    d = -ln E_{y ~ pi_t}[ pi_{t-k}(y)/pi_t(y) | correct ] = ln(P_t / P_{t-k}),

from correct rollouts of pi_t that have not been trained on yet; P is the mean p over prompts. Rollouts that the k
updates were trained on are biased by nats.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Window:
    """One measured stretch of updates: it ends at `step`, `updates` long.

    `value` and `se` in nats; `halves` are values of two disjoint sets of rows (prompts, where there are two), None
    where a half is empty.
    """

    step: int
    updates: int
    rows: int
    value: float
    se: float
    halves: tuple[float, float] | None

    def as_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, kept: dict) -> "Window":
        return cls(**kept | {"halves": tuple(kept["halves"]) if kept["halves"] else None})


def window(step: int, updates: int, log_ratio: ArrayLike, prompt: ArrayLike) -> Window:
    """Displacement of one window.

    Args:
        log_ratio: (n,) ln pi_{t-k}(y) - ln pi_t(y) of the correct rows, n >= 1.
        prompt: (n,) which prompt each row belongs to.

    The logarithm of a mean of n weights is too low by var/(2 n mean^2) on average; that is taken off.

    Raises:
        ValueError: no row, or a log-ratio that is not finite.
    """
    ratio, owner = np.asarray(log_ratio, dtype=float), np.asarray(prompt)
    if len(ratio) == 0 or not np.isfinite(ratio).all():
        bad = "no rows" if len(ratio) == 0 else f"row {int(np.flatnonzero(~np.isfinite(ratio))[0])} is not finite"
        raise ValueError(f"displacement at step {step}: {bad}; correct rows with finite log-probs are needed")
    prompts = np.unique(owner)
    first = np.isin(owner, prompts[::2]) if len(prompts) > 1 else np.arange(len(ratio)) % 2 == 0
    halves = None if first.all() else (_log_mean(ratio[first]), _log_mean(ratio[~first]))
    return Window(step, updates, len(ratio), _log_mean(ratio), _standard_error(ratio, owner), halves)


def rms(windows: Sequence[Window]) -> float | None:
    """sqrt(max(0, mean d_A d_B)) over windows with two halves; the noise of the halves is independent and cancels."""
    products = [w.halves[0] * w.halves[1] for w in windows if w.halves]
    return float(np.sqrt(max(0.0, np.mean(products)))) if products else None


@dataclass(frozen=True)
class Closure:
    """sum of d minus ln(P_end/P_start) of held-out probes, nats; 0 where tracker and probes tell the same story."""

    value: float
    se: float


def closure(windows: Sequence[Window], start: tuple[float, float], end: tuple[float, float]) -> Closure | None:
    """Sum of displacements against held-out probes of the same prompt distribution.

    Args:
        windows: adjoining ones, from the first update to the last, in order.
        start, end: mean p over prompts and its standard error.

    None where a mean is 0, or there is no window: the logarithm has no value.

    Raises:
        ValueError: a window does not begin where the one before ended; updates between them are in the probes only.
    """
    for before, after in pairwise(windows):
        if after.step - after.updates != before.step:
            raise ValueError(
                f"closure: a window ends at step {before.step} and the next begins at {after.step - after.updates}; "
                "the sum leaves updates out or counts them twice; give adjoining windows"
            )
    if not windows or not (start[0] > 0 and end[0] > 0):
        return None
    value = sum(w.value for w in windows) - np.log(end[0] / start[0])
    variance = sum(w.se**2 for w in windows) + (start[1] / start[0]) ** 2 + (end[1] / end[0]) ** 2
    return Closure(float(value), float(np.sqrt(variance)))


def _log_mean(log_ratio: np.ndarray) -> float:
    """-ln mean w, less its bias; w scaled by its largest value."""
    top = log_ratio.max()
    weights = np.exp(log_ratio - top)
    mean, n = weights.mean(), len(weights)
    bias = weights.var(ddof=1) / (2 * n * mean**2) if n > 1 else 0.0
    return float(-top - np.log(mean) - bias)


def _standard_error(log_ratio: np.ndarray, owner: np.ndarray) -> float:
    """Of -ln mean w, by the jackknife: leaving out one prompt after the other.

    Few prompts that moved differently make the logarithm skew, and a linear error would be far too small. Infinite
    for one prompt: how others moved is not known.
    """
    index = np.unique(owner, return_inverse=True)[1]
    count = np.bincount(index)
    units = len(count)
    if units < 2:
        return float("inf")
    total = np.full(units, -np.inf)
    np.logaddexp.at(total, index, log_ratio)
    # Sums of the others from both ends: taking the largest unit off the sum of all would leave rounding error only.
    start = np.concatenate([[-np.inf], np.logaddexp.accumulate(total)[:-1]])
    end = np.concatenate([np.logaddexp.accumulate(total[::-1])[-2::-1], [-np.inf]])
    without = np.logaddexp(start, end) - np.log(len(log_ratio) - count)
    return float(np.sqrt((units - 1) / units * ((without - without.mean()) ** 2).sum()))

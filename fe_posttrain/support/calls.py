"""Calls: which regime each prompt is in, what entered and left the support, how much two supports share.

Calls are made for many prompts at once by e-BH, so that of the prompts called IN (or OUT, or basin) a share alpha at
most is called so wrongly, on average. Everything else is `undetermined`, a first-class answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fe_posttrain.support.budgets import ALPHA, DELTA, threshold
from fe_posttrain.support.evidence import e_bh, log_e_above, log_e_below

REGIMES = ("basin", "tail", "barrier", "out", "singular", "undetermined")
IN, OUT, UNKNOWN = 1, -1, 0
_BASIN = 0.1


@dataclass(frozen=True)
class Evidence:
    """ln e-values (M,) of one side: against p <= p*_B, against p <= max(.1, p*_B), against p >= p*_B."""

    inside: NDArray
    basin: NDArray
    outside: NDArray

    @classmethod
    def of_counts(cls, correct: ArrayLike, drawn: ArrayLike, budget: int, delta: float = DELTA) -> "Evidence":
        """From draws of a fixed number, or stopped at any moment."""
        p = float(threshold(budget, delta))
        return cls(
            log_e_above(correct, drawn, p),
            log_e_above(correct, drawn, max(_BASIN, p)),
            log_e_below(correct, drawn, p),
        )


def membership(evidence: Evidence, alpha: float = ALPHA) -> NDArray:
    """IN, OUT or UNKNOWN for each prompt; the two kinds of call each at false discovery rate alpha."""
    inside, outside = _rejected(evidence.inside, alpha), _rejected(evidence.outside, alpha)
    return np.where(inside & ~outside, IN, np.where(outside & ~inside, OUT, UNKNOWN))


def regimes(
    evidence: Evidence,
    alpha: float = ALPHA,
    *,
    opened: Sequence[str | None] | None = None,
    singular: ArrayLike | None = None,
) -> NDArray:
    """One of REGIMES for each prompt.

    Args:
        opened: the declared channel that reaches each prompt, or None; an OUT prompt with one is a barrier.
        singular: prompts whose every known answer the declared decoding makes impossible.
    """
    member = membership(evidence, alpha)
    basin = _rejected(evidence.basin, alpha)
    found = np.full(member.shape, "undetermined", dtype=object)
    found[member == IN] = "tail"
    found[(member == IN) & basin] = "basin"
    found[member == OUT] = "out"
    if opened is not None:
        found[(member == OUT) & np.array([name is not None for name in opened])] = "barrier"
    if singular is not None:
        found[np.asarray(singular, dtype=bool)] = "singular"
    return found


def counts_by_regime(found: NDArray) -> dict[str, int]:
    """How many prompts are in each regime."""
    return {name: int((found == name).sum()) for name in REGIMES}


def draws_for_exit(budget: int, delta: float = DELTA, alpha: float = ALPHA) -> int:
    """N_t = 4 B ln(1/alpha)/ln(1/delta): with fewer draws of a prompt its leaving cannot be seen."""
    return int(np.ceil(4 * budget * np.log(alpha) / np.log(delta)))


@dataclass(frozen=True)
class Transitions:
    """Prompts that entered (OUT before, IN now) and left (IN before, p_t <= p*_B/4 now) the support at `budget`.

    `exits_testable`: whether there were draws enough to see one leave. `state` (M,) is what to pass at the next probe.
    """

    budget: int
    entered: NDArray
    left: NDArray
    exits_testable: bool
    state: NDArray


def transitions(
    state: NDArray, correct: ArrayLike, drawn: ArrayLike, budget: int, delta: float = DELTA, alpha: float = ALPHA
) -> Transitions:
    """Compare a probe's counts with the state before, with hysteresis: entering needs p*_B, leaving p*_B/4.

    Of the entries a share alpha at most is wrong, on average, and of the exits: e-BH runs over the prompts that could
    enter (or leave) by themselves. Over all prompts it would say so of all IN calls only, and those of prompts that
    stayed in, surely and in great number, would pay for false entries.
    """
    p = float(threshold(budget, delta))
    drawn = np.broadcast_to(drawn, np.shape(correct))
    state = np.asarray(state)
    inside = _rejected_apart(log_e_above(correct, drawn, p), state == OUT, alpha)
    testable = bool((drawn >= draws_for_exit(budget, delta, alpha)).all())
    gone = np.zeros(inside.shape, dtype=bool)
    if testable:
        gone = _rejected_apart(log_e_below(correct, drawn, p / 4), state == IN, alpha)
    after = np.where(inside, IN, np.where(gone, OUT, state))
    return Transitions(
        budget,
        np.flatnonzero((state == OUT) & inside),
        np.flatnonzero((state == IN) & gone & ~inside),
        testable,
        after,
    )


def jaccard(before: NDArray, after: NDArray) -> tuple[float, float] | None:
    """Least and largest |both| / |either| over all ways that UNKNOWN prompts may lie; None where both may be empty."""
    both = (before == IN) & (after == IN)
    differ = ((before == IN) & (after == OUT)) | ((before == OUT) & (after == IN))
    open_ = ~(both | differ) & ~((before == OUT) & (after == OUT))
    surely_outside = (open_ & ((before == OUT) | (after == OUT))).sum()  # at best in neither
    low = both.sum() + differ.sum() + open_.sum()
    high = both.sum() + differ.sum() + open_.sum() - surely_outside
    if both.sum() + differ.sum() == 0 and not ((before == IN) | (after == IN)).any():
        return None
    return float(both.sum() / low), float((high - differ.sum()) / high)


def _rejected(log_e: NDArray, alpha: float) -> NDArray:
    return e_bh(np.exp(np.clip(log_e, None, 700)), alpha)


def _rejected_apart(log_e: NDArray, apart: NDArray, alpha: float) -> NDArray:
    """e-BH over the prompts `apart` by themselves, and over the others by themselves."""
    found = np.zeros(log_e.shape, dtype=bool)
    for part in (apart, ~apart):
        found[part] = _rejected(log_e[part], alpha)
    return found

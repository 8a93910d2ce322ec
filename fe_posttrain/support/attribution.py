"""Where a gain came from, exactly, for known probabilities; with estimates plugged in, a description.

c_B(p) = 1 - (1-p)^B is what the reference reaches with B draws and the verifier. For each prompt

    p_t - p_ref = min((p_t - p_ref)+, c_B - p_ref)  +  (p_t - c_B)+  -  (p_ref - p_t)+
                        elicited                          created          lost

Estimates plugged in for p_ref and p_t invent creation (a quarter of the gain of a pure elicitation, at 64 reference
draws): what is certified comes from `verdict`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fe_posttrain.support.budgets import reach

LARGEST = 4**10  # B_max of b50


@dataclass(frozen=True)
class Terms:
    """Means over prompts, as probabilities: gain = elicited + created - lost."""

    gain: float
    elicited: float
    created: float
    lost: float


def terms(p_reference: ArrayLike, p_trained: ArrayLike, budget: float) -> Terms:
    """Split of the gain at `budget` draws; exact for exact (M,) probabilities."""
    before, after = np.asarray(p_reference, dtype=float), np.asarray(p_trained, dtype=float)
    reached = reach(before, budget)
    return Terms(
        gain=float((after - before).mean()),
        elicited=float(np.minimum(np.maximum(after - before, 0), reached - before).mean()),
        created=float(np.maximum(after - reached, 0).mean()),
        lost=float(np.maximum(before - after, 0).mean()),
    )


def attributed_share(p_reference: ArrayLike, p_trained: ArrayLike, budget: float) -> float | None:
    """A(B) = elicited / (elicited + created): the share of the gain that B draws of the reference explain.

    None without a gain on any prompt.
    """
    split = terms(p_reference, p_trained, budget)
    gained = split.elicited + split.created
    return split.elicited / gained if gained > 0 else None


def half_gain_budget(p_reference: ArrayLike, p_trained: ArrayLike) -> int | None:
    """B_50, the least B with A(B) >= 1/2; None where 4^10 draws do not reach it, or nothing was gained."""
    share = attributed_share(p_reference, p_trained, LARGEST)
    if share is None or share < 0.5:
        return None
    low, high = 0, LARGEST  # A(low) < 1/2 <= A(high)
    while high - low > 1:
        middle = (low + high) // 2
        if attributed_share(p_reference, p_trained, middle) >= 0.5:
            high = middle
        else:
            low = middle
    return high

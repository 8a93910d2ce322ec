"""Budgets: how likely a behaviour must be to be within reach of B draws, and the key that every claim carries.

A behaviour of probability p per draw is IN the support at budget B iff p >= p*_B = 1 - delta^(1/B): then B draws show
it with probability 1 - delta at least.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALPHA = 0.05  # level of every bound and claim
DELTA = 0.05  # probability with which B draws may miss what counts as reachable
LADDER = (4, 16, 64, 256, 1024, 4096)  # budgets that are always looked at, draws


def threshold(budget: ArrayLike, delta: float = DELTA) -> NDArray:
    """p*_B = 1 - delta^(1/B), the least probability that B draws show with probability 1 - delta."""
    return -np.expm1(np.log(delta) / np.asarray(budget, dtype=float))


def depth(p: ArrayLike, delta: float = DELTA) -> NDArray:
    """D = ln( ln(1/delta) / -ln(1-p) ), nats: e^D draws show p with probability 1 - delta; infinite where p is 0.

    Differences of depths do not depend on delta. ln B is the depth of p*_B.
    """
    with np.errstate(divide="ignore"):
        return np.log(-np.log(delta)) - np.log(-np.log1p(-np.asarray(p, dtype=float)))


def reach(p: ArrayLike, budget: ArrayLike) -> NDArray:
    """c_B(p) = 1 - (1-p)^B: the probability that at least one of B draws shows a behaviour of probability p."""
    with np.errstate(divide="ignore"):
        return -np.expm1(np.asarray(budget, dtype=float) * np.log1p(-np.asarray(p, dtype=float)))


def certified_budget(draws: ArrayLike, delta: float = DELTA, alpha: float = ALPHA) -> NDArray:
    """B_cert = N ln(1/delta) / ln(1/alpha): the largest budget whose support N draws without a hit rule out."""
    return np.asarray(draws, dtype=float) * np.log(delta) / np.log(alpha)


def primary_budget(rollouts_per_prompt: float = 0, least: int = 1024) -> int:
    """B of the headline claims: what a run itself draws of a prompt, at least 1024, rounded up to the ladder's 4^i."""
    budget = LADDER[0]
    while budget < max(least, rollouts_per_prompt):
        budget *= 4
    return budget


def ladder_with(budget: int) -> tuple[int, ...]:
    """The ladder with `budget` in it, ascending.

    Raises:
        ValueError: the budget is no positive whole number.
    """
    if budget != int(budget) or budget < 1:
        raise ValueError(f"budget: {budget}; draws are counted; write a whole number of 1 or more")
    return tuple(sorted({*LADDER, int(budget)}))


@dataclass(frozen=True)
class Key:
    """What a statement about support is relative to; without it the statement is void.

    reference, decoding, verifier: in words or as hashes; `budget` in draws; `delta` and `alpha` as in this module.
    """

    reference: str
    decoding: str
    verifier: str
    budget: int
    delta: float = DELTA
    alpha: float = ALPHA

    def __str__(self) -> str:
        return (
            f"reference {self.reference}, decoding {self.decoding}, verifier {self.verifier}, B = {self.budget}, "
            f"delta = {self.delta:g}, alpha = {self.alpha:g}"
        )

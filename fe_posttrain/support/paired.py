"""Paired differences between two arms of a comparison, and how sure they are: a hierarchical bootstrap.

Both arms ran with the same seeds and were probed on the same prompts, so that a table of differences, (S seeds, M
prompts), is what is known. Three things are chance: which seeds were run, which prompts were asked, what was drawn.
Each replicate takes

    seeds     S of S with replacement, the same in both arms
    prompts   M of M with replacement, the same for every seed (they are: the crossed design of Owen 2007, "The
              pigeonhole bootstrap", Annals of Applied Statistics 1)
    samples   hits ~ Binomial(draws, hits / draws), by the same uniform numbers in both arms, as paired probes share
              their random state

Few seeds are the weak spot: with three that differ, plain 95 % percentiles hold in three of four worlds. So what the
seeds contribute to a replicate is stretched by sqrt(S/(S-1)) t/z, t and z the 97.5 % points of Student's t with S-1
degrees of freedom and of the normal law (the narrowness factor of Hesterberg 2015, "What teachers should know about the
bootstrap", American Statistician 69). Prompts and samples are many and are taken as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm, t

from fe_posttrain.support.intervals import checked, pass_at_k

REPLICATES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its ends; `seeds` it rests on: with one, the ends know nothing of other seeds."""

    value: float
    low: float
    high: float
    seeds: int


class Hits:
    """Hits of S runs on M prompts, that is of one arm, and what is read off them.

    value (S, M): sum over the parts of weight x pass@k. Two parts with weights 1-w and w are a run between two of its
    probe rounds.

    Args:
        correct, drawn: (S, M) whole numbers; for several parts (P, S, M).
        k: draws of which one must hit.
        weights: (P, S); None: one part.

    Raises:
        ValueError: bad counts, or fewer than k draws.
    """

    def __init__(self, correct: ArrayLike, drawn: ArrayLike, k: int = 1, weights: ArrayLike | None = None):
        hits, draws = checked(correct, drawn)
        self.correct, self.drawn = (x if x.ndim == 3 else x[None] for x in (hits, draws))
        self.weights = np.ones(self.correct.shape[:2]) if weights is None else np.asarray(weights, dtype=float)
        self._tables = {int(n): _Table(int(n), k) for n in np.unique(self.drawn)}

    @property
    def value(self) -> NDArray:
        """As it was drawn, (S, M)."""
        return self._weighted(lambda table, at: table.reached[self.correct[at]])

    def again(self, uniform: NDArray) -> NDArray:
        """Drawn anew from the rates that were seen, (S, M), by uniform numbers (S, M); on average `value`."""
        uniform = np.broadcast_to(uniform, self.correct.shape)
        return self._weighted(lambda table, at: table.again(self.correct[at], uniform[at]))

    def _weighted(self, of: Callable[["_Table", NDArray], NDArray]) -> NDArray:
        found = np.empty(self.correct.shape)
        for n, table in self._tables.items():
            at = self.drawn == n
            found[at] = of(table, at)
        return (self.weights[:, :, None] * found).sum(0)


class _Table:
    """pass@k of h hits among n draws, (n+1,), and what other draws of the same rate would have shown."""

    def __init__(self, n: int, k: int):
        count = np.arange(n + 1)
        law = binom.pmf(count, n, count[:, None] / n)  # (hits that were seen, hits that are drawn)
        self.reached = pass_at_k(count, n, k)
        self._below = np.cumsum(law, 1)[:, :-1]
        self._shift = self.reached - law @ self.reached  # pass@k of rates that were seen once is mostly lower

    def again(self, correct: NDArray, uniform: NDArray) -> NDArray:
        hits = (uniform[:, None] > self._below[correct]).sum(1)
        return self.reached[hits] + self._shift[correct]


def paired_hits(arm: Hits, other: Hits, **how) -> Interval:
    """Mean over seeds and prompts of arm - other; `how` goes to `bootstrap`.

    Raises:
        ValueError: other seeds or prompts on one side.
    """
    if arm.correct.shape[1:] != other.correct.shape[1:]:
        raise ValueError(
            f"arms of {arm.correct.shape[1:]} and {other.correct.shape[1:]} seeds and prompts; a paired difference "
            "needs the same on both sides; leave out what one of them lacks"
        )
    shape = arm.correct.shape[1:]

    def again(rng: np.random.Generator) -> NDArray:
        uniform = rng.random(shape)
        return arm.again(uniform) - other.again(uniform)

    return bootstrap(arm.value - other.value, again, **how)


def paired_numbers(arm: Sequence[float], other: Sequence[float], **how) -> Interval:
    """Mean of arm - other for numbers of which each run has one, (S,)."""
    return bootstrap((np.asarray(arm, dtype=float) - np.asarray(other, dtype=float))[:, None], **how)


def recovered_share(arm: Hits, other: Hits, reference: Hits, **how) -> Interval | None:
    """Share of another arm's gain that an arm recovers: (p_arm - p_ref) / (p_other - p_ref), p means over prompts.

    Every replicate draws seeds, prompts and samples once for all three; the reference, which is the same model in every
    seed, has one row of hits, whose samples are drawn once a replicate.

    Args:
        arm, other: (S, M) hits.
        reference: (1, M) hits.

    Returns:
        None where the other arm's gain is not above 0 in almost every replicate: nothing is there to recover.

    Raises:
        ValueError: other seeds or prompts on one side.
    """
    shape = arm.correct.shape[1:]
    if other.correct.shape[1:] != shape or reference.correct.shape[1:] != (1, shape[1]):
        raise ValueError(
            f"arms of {shape} and {other.correct.shape[1:]} seeds and prompts, a reference of "
            f"{reference.correct.shape[1:]}; a share needs the same seeds and prompts and one row of the reference; "
            "leave out what one of them lacks"
        )

    def again(rng: np.random.Generator) -> NDArray:
        uniform = rng.random(shape)
        start = reference.again(rng.random((1, shape[1])))
        return np.stack([arm.again(uniform) - start, other.again(uniform) - start])

    gains = np.stack([arm.value - reference.value, other.value - reference.value])
    found = _replicated(gains, again, **how)
    level = how.get("level", LEVEL)
    lost = found[:, 1] <= 0
    if gains[1].mean() <= 0 or lost.mean() > (1 - level) / 4:
        return None
    shares = np.divide(found[:, 0], found[:, 1], out=np.full(len(found), np.inf), where=~lost)  # the few beyond all
    return _interval(gains[0].mean() / gains[1].mean(), shares, shape[0], level)


def bootstrap(values: ArrayLike, again: Callable[[np.random.Generator], NDArray] | None = None, **how) -> Interval:
    """Mean of a table (S, M) with the ends of its hierarchical bootstrap; see the module.

    Args:
        again: gives such a table drawn anew, for a Generator; None: the values are exact.
        how: `level`, `replicates`, `seed`.
    """
    table = np.asarray(values, dtype=float)[None]
    found = _replicated(table, again and (lambda rng: again(rng)[None]), **how)
    return _interval(table.mean(), found[:, 0], table.shape[1], how.get("level", LEVEL))


def _replicated(
    tables: NDArray,
    again: Callable[[np.random.Generator], NDArray] | None,
    *,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> NDArray:
    """Means of K tables (K, S, M) in every replicate, (replicates, K); all see the same seeds, prompts and samples."""
    _, s, m = tables.shape
    rng = np.random.default_rng(seed)
    mean, by_seed = tables.mean((1, 2)), tables.mean(2)
    stretch = stretched(s, level)
    found = np.empty((replicates, len(tables)))
    for i in range(replicates):
        drawn = tables if again is None else again(rng)
        seeds, prompts = rng.integers(s, size=s), rng.integers(m, size=m)
        of_seeds = by_seed[:, seeds].mean(1)
        picked = drawn[:, seeds[:, None], prompts].mean((1, 2))
        found[i] = mean + stretch * (of_seeds - mean) + (picked - of_seeds)
    return found


def _interval(value: float, found: NDArray, seeds: int, level: float) -> Interval:
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(min(low, value)), float(max(high, value)), seeds)


def stretched(seeds: int, level: float = LEVEL) -> float:
    """sqrt(S/(S-1)) t/z; 1 for a single seed, which shows no spread to stretch."""
    if seeds < 2:
        return 1.0
    point = (1 + level) / 2
    return float(np.sqrt(seeds / (seeds - 1)) * t.ppf(point, seeds - 1) / norm.ppf(point))

"""The verdict: how much of a gain is certified as elicited, created or lost, jointly at alpha.

Every lower bound is made the same way. Draws are split in two halves. One half chooses prompts: sorted by the
quantity of interest, the prefix whose pooled bound is largest. The other half bounds the quantity on those prompts;
then the halves change places, and the two bounds are averaged. Nothing is lost by leaving prompts out, since each
contributes 0 at least; c_B is concave, so pooling can only understate; and a pooled Clopper-Pearson bound is
conservative for draws of unequal p. Each of the three bounds holds at a = alpha/3.

So the three lower bounds hold together with probability 1 - alpha; so do the three upper ends, and so do both ends of
the gain. Of all eight at once only 1 - 3 alpha is proved; in simulated worlds all held in .99 and more.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fe_posttrain.support.attribution import terms
from fe_posttrain.support.budgets import ALPHA, reach
from fe_posttrain.support.intervals import checked, lower_bound, upper_bound


@dataclass(frozen=True)
class Halves:
    """Two equal halves of each prompt's draws. `correct` (2, M): hits; `drawn`: draws of one half of one prompt."""

    correct: NDArray
    drawn: int

    @classmethod
    def in_order(cls, correct: ArrayLike) -> "Halves":
        """From draws (M, N) in the order they were made; an odd last one is left out."""
        draws = np.asarray(correct)
        half = draws.shape[1] // 2
        return cls(np.stack([draws[:, :half].sum(1), draws[:, half : 2 * half].sum(1)]).astype(np.int64), half)

    @classmethod
    def of_counts(cls, correct: ArrayLike, drawn: ArrayLike, seed: int = 0) -> "Halves":
        """From counts, at random: as many draws of each prompt as the poorest has, one half against the other."""
        hits, draws = checked(correct, drawn)
        half = int(draws.min()) // 2
        rng = np.random.default_rng(seed)
        kept = rng.hypergeometric(hits, draws - hits, 2 * half)
        first = rng.hypergeometric(kept, 2 * half - kept, half)
        return cls(np.stack([first, kept - first]), half)

    @property
    def prompts(self) -> int:
        return self.correct.shape[1]

    @property
    def p(self) -> NDArray:
        """Hits per draw in each half, (2, M)."""
        return self.correct / max(1, self.drawn)


@dataclass(frozen=True)
class Bounds:
    """Per-prompt bounds (M,) that hold for all prompts at once; see `verdict` for their levels."""

    low: NDArray
    high: NDArray


@dataclass(frozen=True)
class Term:
    """One number of the verdict in percentage points; each kind of end holds jointly over the terms, see above."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Verdict:
    """gain = elicited + created + undetermined - lost, in percentage points over the `prompts` at hand."""

    gain: Term
    elicited: Term
    created: Term
    undetermined: Term
    lost: Term
    budget: int
    alpha: float
    prompts: int


def verdict(
    reference: Halves,
    trained: Halves,
    *,
    budget: int,
    alpha: float = ALPHA,
    reference_bounds: Bounds,
    trained_bounds: Bounds,
    reference_low: NDArray,
    deep: Halves | None = None,
    deep_prompts: NDArray | None = None,
) -> Verdict:
    """Certified terms of the gain at `budget`.

    Args:
        reference, trained: a fixed number of draws of every prompt.
        reference_bounds, trained_bounds: each side's per-prompt bounds at level alpha/(4M).
        reference_low: l_x, lower bounds on p_ref that hold for all prompts at once at level alpha/6.
        deep, deep_prompts: more reference draws of the prompts with these indices, chosen without looking at
            `deep`; where given, `created` is certified from them alone.

    Raises:
        ValueError: sides of different prompts, or fewer than two draws.
    """
    if reference.prompts != trained.prompts or min(reference.drawn, trained.drawn) < 1:
        raise ValueError(
            f"verdict: {reference.prompts} prompts with {2 * reference.drawn} draws against {trained.prompts} with "
            f"{2 * trained.drawn}; the same prompts with two draws or more are needed on both sides"
        )
    m, a = reference.prompts, alpha / 3
    chosen = np.arange(m) if deep_prompts is None else np.asarray(deep_prompts)
    absent = reference if deep is None else deep
    present = Halves(trained.correct[:, chosen], trained.drawn)
    missed = 1 - reach(reference_low, budget)
    created = _certified(
        score=present.p - reach(absent.p, budget),
        bound=lambda up, down, _: up - reach(down, budget),
        up=present,
        down=absent,
        share=1 / m,
        level=a / 4,
    )
    lost = _certified(
        score=reference.p - trained.p,
        bound=lambda up, down, _: up - down,
        up=reference,
        down=trained,
        share=1 / m,
        level=a / 4,
    )
    elicited = _certified(
        score=trained.p - reference.p - missed,
        bound=lambda up, down, prefix: up - down - prefix(missed),
        up=trained,
        down=reference,
        share=1 / m,
        level=a / 8,
    )
    gain = float((trained.p - reference.p).mean())
    pooled = [int(side.correct.sum()) for side in (reference, trained)]
    draws = [2 * side.drawn * m for side in (reference, trained)]
    four = alpha / 4
    gain_low = lower_bound(pooled[1], draws[1], four) - upper_bound(pooled[0], draws[0], four)
    gain_high = upper_bound(pooled[1], draws[1], four) - lower_bound(pooled[0], draws[0], four)
    highest = _highest(reference_bounds, trained_bounds, budget)

    def term(low: float, high: float) -> Term:
        return Term(100 * low, 100 * low, 100 * max(low, high))

    return Verdict(
        gain=Term(100 * gain, 100 * float(gain_low), 100 * float(gain_high)),
        elicited=term(elicited, highest["elicited"]),
        created=term(created, highest["created"]),
        undetermined=Term(100 * (gain - elicited - created + lost)),
        lost=term(lost, highest["lost"]),
        budget=budget,
        alpha=alpha,
        prompts=m,
    )


def verdict_of_counts(
    reference: tuple[ArrayLike, ArrayLike],
    trained: tuple[ArrayLike, ArrayLike],
    *,
    budget: int,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Verdict:
    """The verdict for (correct, drawn) of both sides, numbers of draws fixed beforehand; halves by `seed`."""
    m = len(np.asarray(reference[0]))
    each = alpha / (4 * m)
    sides = [Bounds(lower_bound(*side, each), upper_bound(*side, each)) for side in (reference, trained)]
    return verdict(
        Halves.of_counts(*reference, seed),
        Halves.of_counts(*trained, seed + 1),
        budget=budget,
        alpha=alpha,
        reference_bounds=sides[0],
        trained_bounds=sides[1],
        reference_low=lower_bound(*reference, alpha / (6 * m)),
    )


def _certified(score: NDArray, bound: Callable, up: Halves, down: Halves, share: float, level: float) -> float:
    """Lower bound on share * sum of a nonnegative quantity, by prefixes of one half bounded on the other, averaged.

    `bound(up, down, prefix)` is the pooled bound of a prefix's mean from bounds of the two sides' means; `prefix(v)`
    are the means of v over the prefixes.
    """
    if score.shape[1] == 0:
        return 0.0
    found = []
    for here, there in ((0, 1), (1, 0)):
        order = np.argsort(-score[here], kind="stable")
        size = np.arange(1, len(order) + 1)

        def values(half: int, order=order, size=size) -> NDArray:
            hits = [np.cumsum(side.correct[half][order]) for side in (up, down)]
            low = lower_bound(hits[0], size * up.drawn, level)
            high = upper_bound(hits[1], size * down.drawn, level)
            return size * share * bound(low, high, lambda v: np.cumsum(v[order]) / size)

        best = int(np.argmax(values(here)))
        found.append(max(0.0, float(values(there)[best])))
    return sum(found) / 2


def _highest(reference: Bounds, trained: Bounds, budget: int) -> dict[str, float]:
    """Upper ends: each term at the corner of the per-prompt bounds that makes it largest."""
    # c_B(p) - p is largest where its derivative B (1-p)^(B-1) - 1 vanishes.
    widest = 1 - budget ** (-1 / (budget - 1)) if budget > 1 else 0.0
    at = np.clip(widest, reference.low, reference.high)
    room = reach(at, budget) - at
    return {
        "elicited": float(np.minimum(np.maximum(trained.high - reference.low, 0), room).mean()),
        "created": float(np.maximum(trained.high - reach(reference.low, budget), 0).mean()),
        "lost": float(np.maximum(reference.high - trained.low, 0).mean()),
    }


def exact_points(p_reference: ArrayLike, p_trained: ArrayLike, budget: int) -> dict[str, float]:
    """The terms of known probabilities in percentage points, for comparison."""
    return {name: 100 * value for name, value in vars(terms(p_reference, p_trained, budget)).items()}

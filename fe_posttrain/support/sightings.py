"""Support as the literature counts it, "seen at least once", and how much of that is chance.

A prompt counts as kept if both models solved it at least once, shrunk if only the reference did, expanded if only the
trained model did, out if neither did. None of this is a call: of a model that nothing happened to, fresh draws "expand"
and "shrink" some prompts every time. That is the null floor, and it belongs beside every such number.

Source: Wu et al. 2025, "The Invisible Leash", arXiv 2507.14843 (SRR, NDR, SDS, NSCR).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fe_posttrain.support.intervals import checked, pass_at_k


@dataclass(frozen=True)
class Sightings:
    """Prompts by who solved them at least once: both, the reference only, the trained model only, neither."""

    kept: int
    shrunk: int
    expanded: int
    out: int

    @property
    def srr(self) -> float | None:
        """Support retention rate P/(P+S): of what the reference showed, the share still seen. None for 0/0."""
        return _ratio(self.kept, self.kept + self.shrunk)

    @property
    def ndr(self) -> float | None:
        """Net discovery rate E/(P+E): of what the trained model showed, the share not seen before. None for 0/0."""
        return _ratio(self.expanded, self.kept + self.expanded)

    @property
    def sds(self) -> float | None:
        """Support dynamic score 2PE/(P^2+2PE+ES), the harmonic mean of SRR and NDR. None for 0/0."""
        p, s, e = self.kept, self.shrunk, self.expanded
        return _ratio(2 * p * e, p * p + 2 * p * e + e * s)

    @property
    def nscr(self) -> float | None:
        """Net support change rate (E-S)/(P+E+S), in [-1, 1]. None if nobody solved anything."""
        return _ratio(self.expanded - self.shrunk, self.kept + self.expanded + self.shrunk)


@dataclass(frozen=True)
class NullFloor:
    """Expected numbers of prompts that would be "expanded" and "shrunk" had nothing changed."""

    expanded: float
    shrunk: float


def sightings(
    reference_correct: ArrayLike, reference_drawn: ArrayLike, trained_correct: ArrayLike, trained_drawn: ArrayLike
) -> Sightings:
    """Counts the four bins over prompts; arguments are whole numbers of shape (prompts,).

    Raises:
        ValueError: bad counts, a prompt of which one of the two drew nothing (it says which), or unequal shapes.
    """
    before, _, after, _ = _counts(reference_correct, reference_drawn, trained_correct, trained_drawn)
    seen, now = before > 0, after > 0
    return Sightings(*(int(bin_.sum()) for bin_ in (seen & now, seen & ~now, ~seen & now, ~seen & ~now)))


def null_floor(
    reference_correct: ArrayLike, reference_drawn: ArrayLike, trained_correct: ArrayLike, trained_drawn: ArrayLike
) -> NullFloor:
    """Spurious expansions and shrinkages to expect among the same prompts if both models were one.

    With c = c_r + c_t correct of N = N_r + N_t pooled draws of a prompt, any N_r of the draws could have been the
    reference's: they miss what all of them show with probability pass@N - pass@N_r (Chen's unbiased pass@k of the
    pooled counts), so that

        expanded = sum over prompts of pass@N - pass@N_r,      shrunk = sum over prompts of pass@N - pass@N_t

    Unbiased if nothing changed; otherwise the floor of a model that is the mixture of the two. Draws may differ between
    prompts. Arguments and errors as `sightings`.
    """
    before, reference_n, after, trained_n = _counts(reference_correct, reference_drawn, trained_correct, trained_drawn)
    hits, draws = before + after, reference_n + trained_n

    def missed(part: NDArray) -> float:
        return float(sum((1.0 * (hits[at] > 0) - pass_at_k(hits[at], draws[at], k)).sum() for k, at in _groups(part)))

    return NullFloor(expanded=missed(reference_n), shrunk=missed(trained_n))


def _groups(part: NDArray) -> list[tuple[int, NDArray]]:
    """Each number of draws with the prompts that have it."""
    return [(int(k), part == k) for k in np.unique(part)]


def _counts(
    reference_correct: ArrayLike, reference_drawn: ArrayLike, trained_correct: ArrayLike, trained_drawn: ArrayLike
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Correct and drawn of the reference, then of the trained model; (prompts,) each."""
    before, reference_n = (counts.ravel() for counts in checked(reference_correct, reference_drawn))
    after, trained_n = (counts.ravel() for counts in checked(trained_correct, trained_drawn))
    if before.shape != after.shape:
        raise ValueError(
            f"trained_correct: {after.size} prompts, the reference has {before.size}; row by row they are the same "
            "prompt; pair them"
        )
    empty = (reference_n == 0) | (trained_n == 0)
    if empty.any():
        row = int(np.flatnonzero(empty)[0])
        raise ValueError(
            f"row {row}: {reference_n[row]} draws of the reference and {trained_n[row]} of the trained model; what was "
            "not drawn cannot be seen; draw it or leave out that row"
        )
    return before, reference_n, after, trained_n


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None

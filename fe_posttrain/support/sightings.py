""" "Seen at least once", as the literature counts it, and what of it nothing but chance would show.

A prompt is *seen* by a side if any of its draws is correct. The Invisible Leash (arXiv 2507.14843) sorts prompts into
kept P, lost S, gained E and out O. With no change at all, prompts of small p fall into S and E by chance: the null
floor says how many. None of these numbers is a claim about support.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fe_posttrain.support.intervals import checked, pass_at_k


@dataclass(frozen=True)
class Sightings:
    """Prompts seen by both sides (P), by the reference alone (S), by the trained model alone (E), by neither (O)."""

    kept: int
    shrunk: int
    expanded: int
    out: int

    @property
    def srr(self) -> float | None:
        """Support retention rate P/(P+S); None where the reference saw nothing."""
        return _ratio(self.kept, self.kept + self.shrunk)

    @property
    def ndr(self) -> float | None:
        """Net discovery rate E/(P+E); None where the trained model saw nothing."""
        return _ratio(self.expanded, self.kept + self.expanded)

    @property
    def sds(self) -> float | None:
        """Support dynamic score, the harmonic mean of the two: 2PE/(P^2+2PE+ES)."""
        p, s, e = self.kept, self.shrunk, self.expanded
        return _ratio(2 * p * e, p * p + 2 * p * e + e * s)

    @property
    def nscr(self) -> float | None:
        """Net support change rate (E-S)/(P+E+S)."""
        return _ratio(self.expanded - self.shrunk, self.kept + self.expanded + self.shrunk)


def sightings(
    reference_correct: ArrayLike, reference_drawn: ArrayLike, trained_correct: ArrayLike, trained_drawn: ArrayLike
) -> Sightings:
    """Sort prompts by which side saw them.

    Args:
        reference_correct, trained_correct: (M,) hits.
        reference_drawn, trained_drawn: draws of each prompt, for the check of the counts.
    """
    before = checked(reference_correct, reference_drawn)[0] > 0
    after = checked(trained_correct, trained_drawn)[0] > 0
    cells = (before & after, before & ~after, ~before & after, ~before & ~after)
    return Sightings(*(int(cell.sum()) for cell in cells))


def null_floor(
    reference_correct: ArrayLike, reference_drawn: int, trained_correct: ArrayLike, trained_drawn: int
) -> tuple[float, float]:
    """Expected (expanded, shrunk) if the two sides were the same model: M (pass@(N_r+N_t) - pass@N_r), and with N_t.

    pass@k by Chen's unbiased estimate from both sides' draws together, N_r and N_t draws of every prompt.
    """
    hits = np.asarray(reference_correct) + np.asarray(trained_correct)
    together = reference_drawn + trained_drawn
    ever = pass_at_k(hits, together, together)
    expanded = ever - pass_at_k(hits, together, reference_drawn)
    shrunk = ever - pass_at_k(hits, together, trained_drawn)
    return float(expanded.sum()), float(shrunk.sum())


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None

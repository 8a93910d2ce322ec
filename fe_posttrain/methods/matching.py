"""Two fair ways to put arms beside each other: the same rollouts paid for, or the same KL spent.

G  generated tokens and verifier calls are equal within 2 %, in every seed.
K  both arms are looked at where they have moved equally far from the reference. A run is a line through its probe
   rounds, from the reference (KL 0) on; success is linear in KL between two rounds. The KL is the largest one that
   every run of both arms reaches; nothing is extrapolated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fe_posttrain.methods.measured import Measured, Round
from fe_posttrain.support.paired import Hits

MOST = 0.02  # difference of what is called equal, as a share of the larger
LEAST_KL = 1e-3  # nats: below, a run has not left its reference
_RESOURCES = {"generated_tokens": "generated tokens", "verifier_calls": "verifier calls"}


def generated_match(arm: Mapping[int, Measured], other: Mapping[int, Measured]) -> dict:
    """Whether two arms paid for the same rollouts.

    Args:
        arm, other: by seed; the seeds that both have are looked at.

    Returns:
        `holds`; `differences`: resource -> arm over other minus 1 in the seed where they differ most (None: other had
        none); `why` in words.
    """
    found, words = {}, []
    for name, title in _RESOURCES.items():
        pairs = [(arm[seed].account[name], other[seed].account[name]) for seed in arm.keys() & other.keys()]
        mine, theirs = max(pairs, key=lambda pair: _miss(*pair))
        found[name] = mine / theirs - 1 if theirs else 0.0 if mine == 0 else None
        if _miss(mine, theirs) > MOST:
            words.append(f"{title} {mine:,.0f} against {theirs:,.0f}" + _percent(found[name]))
    return {"holds": not words, "differences": found, "why": "; ".join(words) or "equal within 2 %"}


def _miss(mine: float, theirs: float) -> float:
    larger = max(mine, theirs)
    return abs(mine - theirs) / larger if larger else 0.0


def _percent(share: float | None) -> str:
    return "" if share is None else f" ({100 * share:+.1f} %)"


def common_kl(runs: Sequence[Measured]) -> float | None:
    """The largest KL (nats) that every run reaches; None where one has not left its reference."""
    reached = min(max(found.kl for found in run.rounds) for run in runs)
    return reached if reached > LEAST_KL else None


@dataclass(frozen=True)
class Between:
    """A run at a KL: `share` of the way from one of its rounds to the next."""

    before: Round
    after: Round
    share: float

    @property
    def success(self) -> float:
        return (1 - self.share) * self.before.success + self.share * self.after.success


def at_kl(run: Measured, kl: float) -> Between:
    """Where the run first reaches `kl`.

    Raises:
        ValueError: it never does.
    """
    for before, after in zip(run.rounds, run.rounds[1:], strict=False):
        if before.kl <= kl <= after.kl:
            return Between(before, after, (kl - before.kl) / (after.kl - before.kl) if after.kl > before.kl else 1.0)
    raise ValueError(f"KL {kl:.3g} is beyond the {max(found.kl for found in run.rounds):.3g} nats that the run reached")


def hits_at_kl(runs: Sequence[Measured], kl: float) -> Hits:
    """pass@1 of these runs, one a seed, where each first reaches `kl`."""
    found = [at_kl(run, kl) for run in runs]
    ends = [[b.before for b in found], [b.after for b in found]]
    return Hits(
        np.stack([[end.correct for end in side] for side in ends]),
        np.stack([[end.drawn for end in side] for side in ends]),
        weights=[[1 - b.share for b in found], [b.share for b in found]],
    )

"""Depth of a prompt: the ln of the draws that it takes to see a correct completion, and what counts show of it."""

import math
from dataclasses import dataclass

BASIN = 0.1  # probability from which a prompt is in the basin


def depth(p: float, delta: float) -> float:
    """D = ln( ln(1/delta) / -ln(1-p) ), nats, for 0 < p < 1: e^D draws show p with probability 1 - delta."""
    return math.log(-math.log(delta)) - math.log(-math.log1p(-p))


@dataclass(frozen=True)
class Seen:
    """Where counts put a prompt.

    Args:
        depth: nats; the plug-in value c/N, or at 0 or N hits the depth of the bound 1 - alpha^(1/N) or alpha^(1/N).
        side: 0, or where the truth may lie: 1 at this depth or deeper (no hit), -1 at it or less deep (all hits).
    """

    depth: float
    side: int


def seen(correct: int, drawn: int, delta: float, alpha: float) -> Seen:
    """The depth that `correct` of `drawn` completions show."""
    if correct == 0:
        return Seen(depth(-math.expm1(math.log(alpha) / drawn), delta), 1)
    if correct == drawn:
        return Seen(depth(alpha ** (1 / drawn), delta), -1)
    return Seen(depth(correct / drawn, delta), 0)


def edges(budget: int, delta: float) -> tuple[float, float]:
    """Depths at which the basin ends and at which the support at B ends (ln B)."""
    reach = math.log(budget)
    return min(depth(BASIN, delta), reach), reach

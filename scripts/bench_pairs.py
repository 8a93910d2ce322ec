"""Paired measurements: arms by turns, the median of their ratios, and its interval."""

import statistics
from collections.abc import Callable

INTERVAL = (
    "of the median of the paired ratios, from order statistics: independent pairs, no law assumed. Its coverage, "
    "exact for a continuous law, is 1 - 2 P(Binomial(pairs, 1/2) < k) from the k-th smallest to the k-th largest "
    "ratio: the narrowest one of at least .95, or the whole range where too few pairs reach that."
)


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float, float]:
    """Confidence interval of a median from order statistics: low, high, and the probability that it covers.

    The k-th smallest and the k-th largest of n draws miss the median when fewer than k draws fall on one of its
    sides; their number is Binomial(n, 1/2), so coverage is 1 - 2 P(Binomial(n, 1/2) <= k - 1): exact for a
    continuous law, a lower bound for others. Takes the largest k with coverage >= `level`, or 1 where none has.
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    coverage = {k: 1 - 2 * float(binom.cdf(k - 1, n, 0.5)) for k in range(1, (n + 1) // 2 + 1)}
    k = max((k for k in coverage if coverage[k] >= level), default=1)
    return ordered[k - 1], ordered[n - k], coverage[k]


def ratio(above: list[float], below: list[float]) -> dict:
    """Median of the paired ratios `above / below`, with its interval."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    low, high, coverage = median_interval(ratios)
    return {"ratio": statistics.median(ratios), "interval": [low, high], "coverage": coverage, "pairs": len(ratios)}


def alternate(names: list[str], rounds: int, measure: Callable) -> dict[str, list]:
    """`measure(name, round)` of every arm once a round, in one order and then in the other."""
    found: dict[str, list] = {name: [] for name in names}
    for i in range(rounds):
        for name in names if i % 2 else reversed(names):
            found[name].append(measure(name, i))
    return found

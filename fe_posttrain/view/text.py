"""Numbers as a person reads them in a terminal or a card: short, and never more exact than they are."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

_LEVELS = "▁▂▃▄▅▆▇█"


def number(value: float) -> str:
    """Three digits after the point, four in all from 1000 on; no `-0.000`."""
    return f"{value:.4g}" if abs(value) >= 1000 else f"{round(value, 3) + 0.0:.3f}"


def probability(p: float) -> str:
    """Three digits after the point, or the order of magnitude of what is smaller; 0.999 is not rounded up to 1."""
    if 0 < p < 1e-3:
        return f"{p:.0e}"
    return f"{min(p, 0.999) if p < 1 else p:.3f}"


def floor(points: float) -> str:
    """One digit, never more than the number: for lower ends."""
    return _one_digit(points, math.floor)


def ceiling(points: float) -> str:
    """One digit, never less than the number: for upper ends."""
    return _one_digit(points, math.ceil)


def nearest(points: float) -> str:
    """One digit: for values that claim nothing."""
    return _one_digit(points, round)


def compact(value: float) -> str:
    """Three digits at most: 950, 4.1k, 12k, 3.4M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 9.95 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """0:07, 12:34, 3:02:01, 2d 04:00."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d {hours:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve in one line of at most `width` characters, lowest value to highest; each is a mean where they are more.

    Constant values lie at the bottom.
    """
    if not values or width < 1:
        return ""
    count = min(width, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [_mean(values[a:b]) for a, b in pairwise(edges)]
    low, span = min(means), max(means) - min(means)
    return "".join(_LEVELS[int((value - low) / span * 7.999)] if span > 0 else _LEVELS[0] for value in means)


def one_line(text: str) -> str:
    """Without line breaks and runs of blanks."""
    return " ".join(text.split())


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def _one_digit(points: float, rounded) -> str:
    return f"{rounded(round(10 * points, 6)) / 10 + 0.0:.1f}"

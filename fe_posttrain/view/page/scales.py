"""Axes: from values to positions on a drawing and sensible ticks between them.

A drawing carries its axes as attributes (`data-x-domain`, `data-x-range`, `data-x-scale`, and for y), so that whoever
reads the page can turn positions back into values.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

_NEAR, _ROOM = 0.12, 0.04  # of the span: a tick so near becomes the end; else so much is left free


@dataclass(frozen=True)
class Scale:
    """Values of `low` to `high` onto positions `start` to `end`, linear or (`log`) in their logarithm.

    Raises:
        ValueError: an empty domain, or one that a logarithm does not have.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"no axis from {self.low} to {self.high}{' in logarithms' if self.log else ''}")

    def __call__(self, value: float) -> float:
        low, high, value = self.low, self.high, value
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def attributes(self, axis: str) -> dict[str, str]:
        """What a drawing says of its axis, for `tag`."""
        return {
            f"data_{axis}_domain": f"{self.low!r} {self.high!r}",
            f"data_{axis}_range": f"{self.start!r} {self.end!r}",
            f"data_{axis}_scale": "log" if self.log else "linear",
        }

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the domain."""
        if self.log:
            return decades(self.low, self.high, about)
        step = _round_step(self.high - self.low, about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [_clean(i * step) for i in range(first, last + 1)]


def around(values: Iterable[float], start: float, end: float, *, log: bool = False, about: int = 4) -> Scale:
    """A scale that holds all values, and ends at a tick where one is near.

    Args:
        log: in logarithms; needs positive values.
        about: so many ticks are meant to lie on it.
    """
    found = list(values) or [0.0]
    low, high = min(found), max(found)
    if log:
        low, high = 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))
        return Scale(low, high if high > low else 10 * low, start, end, log=True)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 2
        low, high = (low - room, high + room) if room else (0.0, 1.0)
    span, step = high - low, _round_step(high - low, about)
    under, over = _clean(math.floor(low / step + 1e-9) * step), _clean(math.ceil(high / step - 1e-9) * step)
    low = under if low - under <= _NEAR * span else low - _ROOM * span
    high = over if over - high <= _NEAR * span else high + _ROOM * span
    return Scale(low, high, start, end)


def steps(last: float, start: float, end: float, first: float = 0.0) -> Scale:
    """The axis of optimizer steps."""
    return Scale(float(first), float(max(last, first + 1)), start, end)


def decades(low: float, high: float, about: int) -> list[float]:
    """Powers of ten, thinned out where there are many."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    every = max(1, math.ceil((last - first) / about))
    return [10.0**i for i in range(first, last + 1, every)]


def tick_label(value: float) -> str:
    """A tick's value in few characters, with a true minus."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e5 or size < 1e-3:
        digits, power = f"{value:.0e}".split("e")
        text = f"{digits}e{int(power)}"
    else:
        text = f"{value:,.6g}" if size < 1000 else f"{value:,.0f}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def _round_step(span: float, about: int) -> float:
    """A step of 1, 2 or 5 times a power of ten that divides a span into about so many parts."""
    rough = span / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 5, 10) if power * m >= rough * (1 - 1e-9))


def _clean(value: float) -> float:
    """Without the last bits of a multiplication: .30000000000000004 is .3."""
    return float(f"{value:.12g}") + 0.0

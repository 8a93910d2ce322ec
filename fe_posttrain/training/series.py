"""What alarms remember of a logged number: first rows, newest rows, extremes; constant in memory and time.

A row is a logged one (`logging_steps`). Everything is a JSON value, so that a resumed run goes on with the same bits.
"""

import math
from dataclasses import dataclass, field, fields, is_dataclass
from statistics import median
from typing import Any, NamedTuple

FIRST = 8  # rows that say where a run began: fewer are one batch's luck, more hold what was already learned
ROWS = 24  # rows of a window: a few prompts a step make the mean of fewer jump, more answer late


class Finding(NamedTuple):
    """What an alarm makes of the row that it has just seen.

    Args:
        bad: whether what people fear is there.
        over: whether it has clearly gone, so that a new episode could begin.
        value, threshold: the statistic and what it is compared with.
        since: step at which it began, as far as the windows tell.
    """

    bad: bool
    over: bool
    value: float
    threshold: float
    since: int


@dataclass
class Series:
    """One logged number; `add` takes a row of it, in order.

    Args:
        rows: length of the window.
        first, last: values of the first `FIRST` rows, and of the window.
        steps: of the window's rows.
        seen: rows so far.
        mean, start: of the window, and of the first rows.
        highest_row: of single rows.
        highest, lowest: extremes of the means of full windows.
    """

    rows: int = ROWS
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    seen: int = 0
    mean: float = 0.0
    start: float = 0.0
    highest_row: float = -math.inf
    highest: float = -math.inf
    lowest: float = math.inf

    def add(self, step: int, value: float) -> None:
        if not math.isfinite(value):
            return
        self.seen += 1
        if len(self.first) < FIRST:
            self.first.append(value)
            self.start = sum(self.first) / len(self.first)
        self.last.append(value)
        self.steps.append(step)
        del self.last[: -self.rows], self.steps[: -self.rows]
        self.mean = sum(self.last) / len(self.last)
        self.highest_row = max(self.highest_row, value)
        if self.full:
            self.highest, self.lowest = max(self.highest, self.mean), min(self.lowest, self.mean)

    @property
    def full(self) -> bool:
        return len(self.last) == self.rows

    @property
    def ready(self) -> bool:
        """Whether the window holds none of the first rows."""
        return self.seen >= FIRST + self.rows

    @property
    def median(self) -> float:
        return median(self.last)

    @property
    def se(self) -> float:
        """Standard error of `mean`, rows taken as independent."""
        return _se(self.last, self.mean)

    @property
    def rise(self) -> float:
        """Of the window's mean above that of the first rows."""
        return self.mean - self.start

    @property
    def rise_se(self) -> float:
        return math.hypot(self.se, _se(self.first, self.start))


def _se(values: list[float], mean: float) -> float:
    n = len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, n * (n - 1)))


def state_of(thing: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON values; infinities become None."""
    return {entry.name: _as_json(getattr(thing, entry.name)) for entry in fields(thing)}


def load_state(thing: Any, kept: dict[str, Any]) -> None:
    """Put back what `state_of` took from a dataclass of the same kind."""
    for entry in fields(thing):
        now, value = getattr(thing, entry.name), kept[entry.name]
        if is_dataclass(now):
            load_state(now, value)
        elif value is not None:
            setattr(thing, entry.name, list(value) if isinstance(value, list) else value)


def _as_json(value: Any) -> Any:
    if is_dataclass(value):
        return state_of(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # what a fresh one has already
    return list(value) if isinstance(value, list) else value

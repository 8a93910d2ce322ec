"""How far a run is, how fast, and what it has said so far: the state behind the terminal's panel.

Fed by one thread with steps, logged rows and events; `now` is a clock in seconds, whichever.
"""

from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any

RECENT = 32  # steps whose times the pace is taken from
PAUSE = 3.0  # a step that took so many times the pace held a pause: a probe, an evaluation, a save


class Curve:
    """A series of any length in at most `most` points; from there on each point is a mean over twice as many."""

    def __init__(self, most: int = 128):
        self.most = most
        self.points: list[float] = []
        self._size, self._sum, self._count = 1, 0.0, 0

    def add(self, value: float) -> None:
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._size:
            return
        self.points.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.points) == self.most:
            pairs = zip(self.points[::2], self.points[1::2], strict=True)
            self.points = [(a + b) / 2 for a, b in pairs]
            self._size *= 2


class Progress:
    """Steps, pace and the newest of everything.

    `last`: every logged key with its newest value. `energy`: F over the run. `verdict`: {"step", and the report} of
    the newest probe. `alarms`, `faults`: what was told, newest last. `off`: why support is no longer tracked.
    """

    def __init__(self, step: int, steps: int, now: float):
        self.step, self.first, self.steps, self.started = step, step, steps, now
        self.last: dict[str, float] = {}
        self.energy = Curve()
        self.verdict: dict[str, Any] | None = None
        self.alarms: deque[str] = deque(maxlen=2)
        self.alarm_count = self.faulty_rows = 0
        self.fault = self.off = self.checkpoint = ""
        self._times: deque[float] = deque(maxlen=RECENT)
        self._tokens: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._begun: float | None = None
        self._paused = 0.0

    def begin_step(self, now: float) -> None:
        """A step begins; what lies between two begins is one step with all that came after it."""
        if self._begun is not None:
            took = now - self._begun
            pace = self.pace
            if pace is not None and took > PAUSE * pace:
                self._paused += took - pace
            self._times.append(took)
        self._begun = now

    def log(self, step: int, logs: Mapping[str, Any]) -> None:
        """A logged row."""
        self.last |= {key: value for key, value in logs.items() if value is not None}
        if logs.get("free_energy/total") is not None:
            self.energy.add(logs["free_energy/total"])
        if logs.get("num_tokens") is not None:
            self._tokens.append((step, logs["num_tokens"]))

    def tell(self, step: int, event: str, content: Mapping[str, Any]) -> None:
        """An event of the run, by the names of events.jsonl."""
        if event == "probe":
            self.verdict = {"step": step, **content["report"]}
        elif event == "alarm":
            self.alarm_count += 1
            self.alarms.append(f"step {step}, {content['alarm']}: {content['message']}")
        elif event == "fault":
            self.faulty_rows += content["rows"]
            self.fault = f"step {step}: {content['message']}"
        elif event == "support_off":
            self.off = content["reason"]
        elif event == "checkpoint":
            self.checkpoint = f"not saved: {content['error']}" if content["error"] else content["name"]

    @property
    def pace(self) -> float | None:
        """Seconds of a step, the median of recent ones, so that pauses do not count; None before there is one."""
        return median(self._times) if self._times else None

    @property
    def left(self) -> float | None:
        """Seconds to the end: steps left at the pace, and pauses as often and as long as so far."""
        done = self.step - self.first
        if self.pace is None or not done:
            return None
        return (self.steps - self.step) * (self.pace + self._paused / done)

    @property
    def tokens_per_second(self) -> float | None:
        """Prompt and completion tokens of a step over the pace; None before two rows are logged."""
        if self.pace is None or self.pace <= 0 or len(self._tokens) < 2:
            return None
        (first, before), (last, after) = self._tokens[0], self._tokens[-1]
        return (after - before) / (last - first) / self.pace if last > first else None

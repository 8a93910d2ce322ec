"""What happens when a reward function fails: it is found out which rows, and the run stops or leaves them out.

A fault is an exception, a return value of the wrong type or length, an element that is no finite number of sane size
(None is none: TRL reads it as "does not apply"), or no answer within the time limit. Nothing is raised while other
processes wait for this one's rewards: faults are collected, gathered, and decided on by all processes together.
"""

import asyncio
import inspect
import math
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from trl.trainer.utils import get_callable_name, is_async_callable

LARGEST = 1e9  # sums of rewards beyond this swallow every other reward of a float32 batch
PASSED_ON = ("trainer_state", "log_extra", "log_metric", "environments")  # TRL's keywords that are no columns


class RewardError(RuntimeError):
    """A reward function failed and the run is to stop; the message names function, row and reason."""


@dataclass(frozen=True)
class Fault:
    """One row that a function gave no reward for. `row`: position among this process's rows."""

    function: str
    row: int
    reason: str
    prompt: str
    completion: str


class _TimeUp(BaseException):
    """The time limit has passed; no Exception, so that `except Exception` in a reward does not swallow it."""


class GuardedReward:
    """A reward function whose faults are collected in `faults` (of the last call) instead of raised.

    A call that fails as a whole is repeated row by row to find the rows at fault, then once more for the others
    together, so that a function that compares the rows of a batch sees it without them.

    Args:
        function: with TRL's signature.
        timeout: seconds for one call; None for no limit. Python code, sleeping and most blocking calls are
            interrupted; a call into C that never returns is not.
        enough: number of faulty rows after which the rest need not be looked for, given the number of rows.
    """

    def __init__(self, function: Callable, timeout: float | None, enough: Callable[[int], int]):
        self.function, self.timeout, self.enough = function, timeout, enough
        self.__name__ = get_callable_name(function)
        self.faults: list[Fault] = []

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        try:
            self._guarded(prompts, completions, columns).send(None)  # never suspends: nothing in it is awaited
        except StopIteration as done:
            return done.value
        raise AssertionError("a synchronous reward was awaited")

    async def _guarded(self, prompts: list, completions: list, columns: dict) -> list[float | None]:
        count = len(prompts)
        self.faults = []

        async def ask(rows: Sequence[int]) -> tuple[list | None, str | None]:
            return await self._ask(*_select(rows, prompts, completions, columns))

        def blame(row: int, reason: str) -> None:
            fault = Fault(self.__name__, row, reason, _excerpt(prompts[row]), _excerpt(completions[row]))
            self.faults.append(fault)

        values, reason = await ask(range(count))
        kept = list(range(count))
        if reason is not None:
            for row in range(count):
                if (why := (await ask([row]))[1]) is not None:
                    blame(row, why)
                    if len(self.faults) >= self.enough(count):
                        return [None] * count
            at_fault = {fault.row for fault in self.faults}
            kept = [row for row in range(count) if row not in at_fault]
            values, again = await ask(kept) if len(kept) < count else (None, reason)
            if again is not None:  # the rows are fine one by one: the fault is of the batch
                for row in kept:
                    blame(row, again)
                return [None] * count
        found: list[float | None] = [None] * count
        for row, value in zip(kept, values, strict=True):
            why = _what_is_wrong(value)
            if why is not None:
                blame(row, why)
            elif value is not None:
                found[row] = float(value)
        return found

    async def _ask(self, prompts: list, completions: list, columns: dict) -> tuple[list | None, str | None]:
        """One call: `(values, None)`, or `(None, why it failed)`."""
        if not prompts:
            return [], None
        try:
            with _time_limit(self.timeout):
                values = self.function(prompts=prompts, completions=completions, **columns)
            if isinstance(self, GuardedAsyncReward):
                values = await asyncio.wait_for(values, self.timeout)
        except (_TimeUp, TimeoutError) as error:
            if isinstance(error, TimeoutError) and self.timeout is None:
                return None, _described(error)
            return None, f"no answer within {self.timeout:g} s (reward_timeout)"
        except (Exception, SystemExit) as error:
            return None, _described(error)
        if isinstance(values, str | bytes | dict) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
            return None, f"returned a {type(values).__name__}, not a list of one number per completion"
        if len(values) != len(prompts):
            return None, f"returned {len(values)} rewards for {len(prompts)} completions"
        return list(values), None


class GuardedAsyncReward(GuardedReward):
    """The same for a function that TRL awaits, beside the others of its kind."""

    async def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float | None]:
        return await self._guarded(prompts, completions, columns)


def guard(reward_funcs, timeout: float | None, enough: Callable[[int], int]) -> list:
    """Each function guarded; models and names of models as they are. One or a list, as TRL takes them."""
    guarded = []
    for each in reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]:
        if not isinstance(each, str | nn.Module | GuardedReward):
            each = (GuardedAsyncReward if is_async_callable(each) else GuardedReward)(each, timeout, enough)
        guarded.append(each)
    return guarded


def require_signature(reward_funcs: list, columns: Sequence[str]) -> None:
    """Every function takes what TRL passes: prompts, completions, completion_ids and every column by keyword.

    Raises:
        ValueError: naming the function and what it lacks.
    """
    passed = dict.fromkeys(["prompts", "completions", "completion_ids", *PASSED_ON[:3], *columns])
    passed.pop("prompt", None)
    for each in reward_funcs:
        if isinstance(each, GuardedReward):
            try:
                inspect.signature(each.function).bind(**passed)
            except TypeError as error:
                raise ValueError(
                    f"reward_funcs: {each.__name__}: {error}; TRL passes prompts, completions and every column by "
                    "keyword; write def f(prompts, completions, **kwargs)"
                ) from error


def report(faults: list[Fault], rows: int) -> str:
    """The faults as a person wants to read them, the first few in full."""
    lines = []
    for fault in faults[:3]:
        shown = f"    prompt {fault.prompt}\n    completion {fault.completion}"
        lines.append(f"{fault.function}: row {fault.row}: {fault.reason}\n{shown}")
    more = f"\n  and {len(faults) - 3} more" if len(faults) > 3 else ""
    return f"reward_funcs: no reward for {len(faults)} of {rows} rows\n  " + "\n  ".join(lines) + more


def _select(rows: Sequence[int], prompts: list, completions: list, columns: dict) -> tuple[list, list, dict]:
    """The arguments of a call for some rows; when they are not all, the function's own logging is left out."""
    count = len(prompts)
    if len(rows) == count:
        return prompts, completions, columns
    chosen = {}
    for name, value in columns.items():
        per_row = name not in PASSED_ON or name == "environments"
        chosen[name] = [value[i] for i in rows] if per_row and isinstance(value, list) else value
    chosen |= {name: _ignore for name in ("log_extra", "log_metric") if name in columns}
    return [prompts[i] for i in rows], [completions[i] for i in rows], chosen


def _ignore(*_, **__) -> None:
    """Stands in for TRL's logging when rows are asked about again."""


def _what_is_wrong(value: Any) -> str | None:
    if value is None:
        return None
    try:
        number = float(value) if not isinstance(value, str | bytes) else None
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None:
        return f"gave {value!r}, a {type(value).__name__}, instead of a number"
    if not math.isfinite(number):
        return f"gave {number}"
    if abs(number) > LARGEST:
        return f"gave {number:g}; rewards larger than {LARGEST:g} leave nothing of the others"
    return None


def _described(error: BaseException) -> str:
    """Exception and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"raised {type(error).__name__}: {error}{where}"


def _excerpt(value: Any, length: int = 120) -> str:
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 4]} ..."


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `_TimeUp` in the body after `seconds`, and again every second for a body that swallows it."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def up(*_) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

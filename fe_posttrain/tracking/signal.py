"""The evaluation signal: which completions are correct, or which label each one has."""

import asyncio
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import PartialState

from fe_posttrain.tracking.drawing import together

_PASSED_ON = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}
_NO_COLUMNS = ("prompt", "completion", "completion_ids")


@dataclass(frozen=True)
class Signal:
    """A verifier, or a graded reward with the least value that counts as correct.

    Args:
        function: with TRL's reward signature.
        threshold: None for verifiers, whose values are 0, 1 or None.
    """

    function: Callable
    threshold: float | None = None

    @property
    def name(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return name if self.threshold is None else f"{name} >= {self.threshold:g}"

    @property
    def identity(self) -> str:
        """Name and source: another verifier of the same name is another one."""
        return f"{self.name}:{source_hash(self.function)}:{getattr(self.function, 'keywords', None) or ''}"

    def __call__(self, rows: Sequence[dict], completions: Sequence, ids: Sequence | None = None) -> np.ndarray:
        """Whether each completion is correct, (n,) bool; a completion without a value is not."""
        values = call(self.function, rows, completions, ids)
        return self.of_values([np.nan if value is None else float(value) for value in values])

    def asked(self, rows: Sequence[dict], completions: Sequence) -> np.ndarray:
        """As a call, of this process's rows alone."""
        values = _asked(self.function, rows, list(completions), [[] for _ in rows])
        return self.of_values([np.nan if value is None else float(value) for value in values])

    def of_values(self, values: Sequence[float]) -> np.ndarray:
        """The same for values that the function has returned.

        Raises:
            ValueError: graded values without a threshold.
        """
        values = np.asarray(values, dtype=float)
        if self.threshold is not None:
            return np.nan_to_num(values, nan=-np.inf) >= self.threshold
        graded = values[~np.isnan(values) & (values != 0) & (values != 1)]
        if len(graded):
            raise ValueError(
                f"support_threshold: {self.name} is graded, it gave {graded[0]:g}; support needs to know from which "
                "value on a completion counts as correct; write support_threshold: NUMBER"
            )
        return values == 1


def call(function: Callable, rows: Sequence[dict], completions: Sequence, completion_ids: Sequence | None) -> list:
    """What a function of TRL's signature returns for these rows; every process asks it about its share of them.

    Raises:
        ValueError: it returns no list of the rows' length.
    """
    ids = [[] for _ in rows] if completion_ids is None else completion_ids
    state = PartialState()
    share = slice(*(len(rows) * (state.process_index + i) // state.num_processes for i in (0, 1)))
    return together(lambda: _asked(function, rows[share], list(completions[share]), list(ids[share])))


def _asked(function: Callable, rows: Sequence[dict], completions: list, ids: list) -> list:
    if not rows:
        return []
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in _NO_COLUMNS}
    values = function(
        prompts=[row["prompt"] for row in rows],
        completions=completions,
        completion_ids=ids,
        **_PASSED_ON | columns,
    )
    if inspect.isawaitable(values):
        values = asyncio.run(_awaited(values))
    if not hasattr(values, "__len__") or len(values) != len(rows):
        name = getattr(function, "__name__", function)
        raise ValueError(f"{name}: one value for each of {len(rows)} completions is wanted, not {values!r:.60}")
    return list(values)


async def _awaited(values):
    return await values


def source_hash(function: Callable) -> str:
    """Of the file that defines it; of its name where there is none."""
    try:
        path = inspect.getsourcefile(function if inspect.isroutine(function) else type(function))
        with open(path, "rb") as file:
            content = file.read()
    except (TypeError, OSError):
        content = repr(getattr(function, "__qualname__", type(function))).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def rows_hash(rows: Sequence[dict]) -> str:
    """Of prompts and their columns."""
    return hashlib.sha256(json.dumps(list(rows), sort_keys=True, default=str).encode()).hexdigest()[:16]

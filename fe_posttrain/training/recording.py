"""What a run writes down while it trains: a row a step, the events between them, and samples of completions.

metrics.jsonl            what the trainer logs: {"step", "seconds", key: value, ...}
events.jsonl             {"step", "seconds", "event", ...}: start, resume, rollouts, probe, support_off, fault,
                         reference_reset, checkpoint, alarm, end
samples/EVENT-STEP.parquet   completions of that event: step, event, model, prompt, family, completion, correct,
                         energy, log_ratio (ln pi/ref of the whole completion, nats), regime

`tell` is how the parts of a run hand an event to whoever listens: callbacks with
`on_event(args, state, control, event=..., content=...)`, main process only.
"""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import TrainerCallback

from fe_posttrain.training.rollout_events import Rollouts
from fe_posttrain.training.run import RunFolder, plain
from fe_posttrain.whole_files import whole_file

logger = logging.getLogger(__name__)

SAMPLES = "samples"
COLUMNS = pa.schema(
    [
        ("step", pa.int64()),
        ("event", pa.string()),
        ("model", pa.string()),
        ("prompt", pa.string()),
        ("family", pa.string()),
        ("completion", pa.string()),
        ("correct", pa.bool_()),
        ("energy", pa.float64()),
        ("log_ratio", pa.float64()),
        ("regime", pa.string()),
    ]
)


def tell(trainer, event: str, **content: Any) -> None:
    """Hand an event to the callbacks of `trainer`; on other processes than the main one nothing happens.

    Args:
        event: what happened, one word.
        content: JSON values. `samples`, a list of dicts with (some of) `COLUMNS`, becomes a Parquet file.
    """
    if not trainer.accelerator.is_main_process:
        return
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "on_event"):
            callback.on_event(trainer.args, trainer.state, trainer.control, event=event, content=content)


class _Rows:
    """A file of JSON lines that only grows. While the disk is full, rows wait in memory and one warning says so."""

    def __init__(self, path: Path):
        self.path = path
        self._waiting: list[str] = []

    def append(self, row: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(plain(row)) + "\n")
        self.write()

    def write(self) -> None:
        end = self._size()
        try:
            with open(self.path, "a") as file:
                file.write("".join(self._waiting))
        except OSError as error:
            if len(self._waiting) == 1:
                logger.warning("%s: %s; rows wait in memory until there is room", self.path.name, error)
            cut(self.path, end)  # no half row
        else:
            self._waiting = []

    def state(self) -> dict[str, Any]:
        return {"bytes": self._size(), "waiting": self._waiting}

    def load_state(self, kept: dict[str, Any]) -> None:
        cut(self.path, kept["bytes"])
        self._waiting = list(kept["waiting"])

    def _size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0


def cut(path: Path, size: int) -> None:
    """Forget what a file holds after its first `size` bytes; it belongs to steps that will be done again."""
    if path.exists():
        os.truncate(path, min(size, path.stat().st_size))


class RunRecorder(TrainerCallback):
    """Appends what the trainer logs to `metrics.jsonl` and what it tells to `events.jsonl`; main process only.

    As a context it writes how the run ended, by an exception or not.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.started = time.time()
        self._metrics, self._events = _Rows(folder.metrics), _Rows(folder.events)
        self._trainer = None

    def bind(self, trainer) -> None:
        self._trainer = trainer

    def __enter__(self) -> "RunRecorder":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._trainer is None:
            return
        status = "failed" if kind else "stopped" if self._trainer.stopped_early else "finished"
        why = f"{kind.__name__}: {error}" if kind else None
        self.on_event(None, self._trainer.state, None, "end", {"status": status, "error": why})

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        event = "resume" if state.global_step else "start"
        self.on_event(args, state, control, event, {"steps": state.max_steps, "time": round(time.time(), 3)})

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs:
            self._metrics.append(self._now(state) | logs)

    def on_event(self, args, state, control, event: str, content: dict[str, Any]) -> None:
        row = self._now(state) | {"event": event} | content
        if samples := row.pop("samples", None):
            row["samples"] = self._write_samples(state.global_step, event, samples)
        self._events.append(row)

    def checkpoint_state(self) -> dict[str, Any]:
        """Where the files end: they are cut to this when a run resumes."""
        seconds = time.time() - self.started
        return {"seconds": seconds, "metrics": self._metrics.state(), "events": self._events.state()}

    def load_checkpoint_state(self, kept: dict[str, Any]) -> None:
        """Take back what `checkpoint_state` gave."""
        self.started = time.time() - kept["seconds"]
        self._metrics.load_state(kept["metrics"])
        self._events.load_state(kept["events"])

    def _now(self, state) -> dict[str, Any]:
        return {"step": state.global_step, "seconds": round(time.time() - self.started, 3)}

    def _write_samples(self, step: int, event: str, samples: list[dict]) -> str | None:
        """Write a Parquet file whole; returns its path in the run folder, or None where there was no room."""
        rows = [{"step": step, "event": event} | plain(sample) for sample in samples]
        path = self.folder.path / SAMPLES / f"{event}-{step:06d}.parquet"
        try:
            path.parent.mkdir(exist_ok=True)
            with whole_file(path) as file:
                pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), file)
        except OSError as error:
            logger.warning("%s was not written: %s; the run goes on", path.name, error)
            return None
        return f"{SAMPLES}/{path.name}"


class RolloutSamples(TrainerCallback):
    """Tells some rollouts of the first step and of every fifth of the run; every process has one.

    Args:
        tag: column of the rows that names their family.
        count: rollouts that are told, spread over the rows of the main process.
    """

    def __init__(self, tag: str = "family", count: int = 8):
        self.tag, self.count = tag, count
        self.trainer = None

    def bind(self, trainer) -> None:
        self.trainer = trainer

    def wants_rollouts(self, state) -> bool:
        return state.global_step % max(1, state.max_steps // 5) == 0

    def on_rollouts(self, args, state, control, rollouts: Rollouts) -> dict[str, float]:
        if not state.is_world_process_zero:
            return {}
        rows = np.unique(np.linspace(0, len(rollouts.inputs) - 1, self.count).round().astype(int))
        first, weights = rollouts.mine.start, self.trainer.reward_weights.cpu().numpy()
        energy = -args.reward_energy_weight * np.nansum(rollouts.rewards * weights, axis=1)
        known = rollouts.log_reference is not None
        ratio = rollouts.log_policy - rollouts.log_reference if known else None
        samples = [
            {
                "model": "policy",
                "prompt": as_text(rollouts.inputs[i]["prompt"]),
                "family": rollouts.inputs[i].get(self.tag),
                "completion": as_text(rollouts.completions[i]),
                "energy": float(energy[first + i]),
                "log_ratio": float(ratio[first + i]) if known else None,
            }
            for i in rows.tolist()
        ]
        tell(self.trainer, "rollouts", samples=samples)
        return {}


def as_text(messages: str | list[dict[str, Any]]) -> str:
    """A prompt or completion, plain or conversational, as one text."""
    if isinstance(messages, str):
        return messages
    if len(messages) == 1:
        return str(messages[0].get("content") or "")
    return "\n".join(f"[{message.get('role', '')}] {message.get('content') or ''}" for message in messages)

"""A wandb run beside the training, which it never disturbs: what fails here is said once and the run goes on.

TRL and transformers call wandb unguarded in the middle of a step. Here it is one callback that mirrors what the run
folder holds. Without a login, or where the server says nothing within 3 s, the run is kept offline in the run
folder; `wandb sync` uploads it later, and `scripts/replay.py` makes it anew from the run folder at any time.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from heapq import merge
from pathlib import Path
from typing import Any

import wandb
from transformers import TrainerCallback

from fe_posttrain.view import weights
from fe_posttrain.view.board.charts import board_objects
from fe_posttrain.view.board.server import answers, logged_in, server
from fe_posttrain.view.catalogue import CATALOGUE, STEP, in_wandb
from fe_posttrain.view.reading import RunData

PAUSE = 10  # seconds between two talks with wandb's service: waking it costs more than the rows of a fast run
START = 15  # seconds that a server which answers has to start the run
ASIDE = "superseded"  # folder of offline runs that a later one of the same id holds too


class Board:
    """A wandb run that is fed the rows and events of a run folder; a history row for each row of metrics.jsonl.

    Args:
        run: of `begin`.
    """

    def __init__(self, run):
        self.run = run
        self._there = run.summary.get(STEP, -1) if run.resumed else -1  # the server has the rows up to this step
        self._waiting: dict[str, Any] = {}
        self._rows: list[dict[str, Any]] = []
        self._sent = -math.inf
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for name in dict.fromkeys(_as_glob(in_wandb(metric.name)) for metric in CATALOGUE):
            run.define_metric(name, step_metric=STEP, step_sync=True)

    def row(self, step: int, logs: Mapping[str, Any], timestamp: float | None = None) -> None:
        """Log a row; numbers that are no number are left out, as in metrics.jsonl."""
        if step <= self._there:
            return
        found = {in_wandb(key): value for key, value in logs.items() if _is_number(value)}
        self._log(step, found, timestamp)

    def event(self, event: Mapping[str, Any], samples: list[dict[str, Any]]) -> None:
        """Charts and tables of an event; they go with the next row. An alarm is also sent to its people."""
        if event["step"] <= self._there:
            return
        self._waiting |= board_objects(event, samples, "" if self.run.offline else self.run.entity)
        if event["event"] == "probe":
            self.run.summary["verdict"] = event["report"]["sentence"]
        elif event["event"] == "alarm":
            self.run.alert(title=f"{event['alarm']} at step {event['step']}", text=event["message"])

    def replay(self, run: RunData) -> None:
        """Log everything that a run folder holds, at the times when it happened."""
        began = None
        rows = (("row", row) for row in run.metrics)
        events = (("event", event) for event in run.events)
        for kind, found in merge(events, rows, key=lambda pair: pair[1]["seconds"]):
            if kind == "row":
                logs = {key: value for key, value in found.items() if key not in ("step", "seconds")}
                self.row(found["step"], logs, None if began is None else began + found["seconds"])
                continue
            if "time" in found:
                began = found["time"] - found["seconds"]
            self.event(found, run.samples(found))

    def finish(self, code: int = 0) -> None:
        """End the run; 0 says that it went well."""
        if self._waiting:
            self._log(self._rows[-1][STEP] if self._rows else self.run.summary.get(STEP, 0), {}, None)
        self._send()
        self.run.finish(exit_code=code)

    def _log(self, step: int, found: dict[str, Any], timestamp: float | None) -> None:
        when = time.time() if timestamp is None else timestamp
        waiting, self._waiting = self._waiting, {}
        self._rows.append({**found, **waiting, STEP: step, "_timestamp": when})
        if time.monotonic() - self._sent >= PAUSE:
            self._send()

    def _send(self) -> None:
        rows, self._rows = self._rows, []
        for row in rows:
            self.run.log(row)
        self._sent = time.monotonic()


def begin(folder: Path, config: Mapping[str, Any], mode: str, name: str | None = None):
    """Start a wandb run whose files lie in the run folder; `name` is the id of one that goes on.

    Project, entity, group and job type are the recipe's `wandb_...` keys, then wandb's own environment variables.
    """
    place = folder / "files-of-wandb" if (folder / "wandb").is_file() else folder
    place.mkdir(exist_ok=True)
    return wandb.init(
        project=config.get("wandb_project") or os.environ.get("WANDB_PROJECT") or "fe_posttrain",
        entity=config.get("wandb_entity"),
        group=config.get("wandb_run_group"),
        job_type=config.get("wandb_job_type") or os.environ.get("WANDB_JOB_TYPE") or kind_of(config),
        name=config.get("run_name") or folder.resolve().name,
        id=name,
        resume="allow" if name else None,
        dir=str(place),
        config=dict(config),
        mode=mode,
        settings=wandb.Settings(init_timeout=START, console="off", silent=True),
    )


def kind_of(config: Mapping[str, Any]) -> str:
    """`sft`, `mixture` or `rl`: what an objective is, for telling arms apart."""
    if not weights.rolls_out(config):
        return "sft"
    return "mixture" if weights.is_used(config, "demonstration_energy_weight") else "rl"


def offline_runs(folder: Path) -> list[Path]:
    """Folders of the offline wandb runs of a run folder, oldest first; a name ends with the run's id."""
    places = (folder / "wandb", folder / "files-of-wandb" / "wandb")
    return sorted(path for place in places for path in place.glob("offline-run-*"))


def put_aside(runs: Iterable[Path]) -> None:
    """Move offline runs that a later one holds too out of the way of `wandb sync wandb/offline-run-*`."""
    for path in runs:
        (path.parent / ASIDE).mkdir(exist_ok=True)
        path.rename(path.parent / ASIDE / path.name)


class WandbCallback(TrainerCallback):
    """Mirrors a run in wandb, by transformers' names (`train/...`, `eval/...`), over `train/global_step`.

    A run that is resumed goes on under the id that its checkpoint names. Where the server does not have its first
    part, or there is none, that part is logged again from the run folder, so that the newest run is always whole.

    Args:
        folder: the run folder; wandb's files lie in its folder `wandb`.
        config: the resolved recipe, without secrets.
        say: takes one line for the person at the terminal.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], say: Callable[[str], None]):
        self.folder, self.config, self.say = folder, config, say
        self.id: str | None = None
        self._board: Board | None = None

    def checkpoint_state(self) -> dict[str, Any]:
        return {"id": self.id}

    def load_checkpoint_state(self, kept: dict[str, Any]) -> None:
        self.id = kept["id"]

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # what there is to say is said here
        for mode in (self._mode, lambda: "offline"):
            try:
                self._start(mode())
                return
            except Exception as error:  # of any kind: a dashboard is no reason to stop a training
                self._board = None
                self.say(f"wandb: not started: {_first_line(error)}; training is not affected")

    def _start(self, mode: str) -> None:
        run = begin(self.folder, self.config, mode, self.id)
        earlier = [path for path in offline_runs(self.folder) if path != Path(run.dir).parent]
        self.id, self._board = run.id, Board(run)
        if not run.resumed:
            self._board.replay(RunData(self.folder))
            put_aside(earlier)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        self._guarded(state, lambda board: board.row(state.global_step, logs or {}))

    def on_event(self, args, state, control, event: str, content: Mapping[str, Any]) -> None:
        row = {"step": state.global_step, "event": event, **content}
        self._guarded(state, lambda board: board.event(row, content.get("samples") or []))

    def __enter__(self) -> "WandbCallback":
        return self

    def __exit__(self, kind, *_) -> None:
        """End the wandb run, as failed if training raised."""
        board, self._board = self._board, None
        if board is None:
            return
        try:
            board.finish(int(kind is not None))
        except Exception as error:
            self.say(f"wandb: not finished: {_first_line(error)}; scripts/replay.py {self.folder} makes it anew")

    def _guarded(self, state, act: Callable[[Board], None]) -> None:
        if self._board is None or not state.is_world_process_zero:
            return
        try:
            act(self._board)
        except Exception as error:
            self._board = None
            with suppress(Exception):  # or its dead service is called once more when Python ends
                wandb.teardown()
            self.say(
                f"wandb: died at step {state.global_step}: {_first_line(error)}; training goes on without it, and "
                f"scripts/replay.py {self.folder} makes the run anew"
            )

    def _mode(self) -> str:
        """Online where it can be; says why not, once."""
        mode = os.environ.get("WANDB_MODE") or "online"
        if mode != "online":
            return mode
        later = f"the run is kept offline in {self.folder}; wandb sync uploads it"
        if not logged_in():
            self.say(f"wandb: no login on this machine; {later} after wandb login")
            return "offline"
        url = server()
        if not answers(url):
            self.say(f"wandb: {url} does not answer; {later}")
            return "offline"
        return "online"


def _as_glob(name: str) -> str:
    """wandb knows a `*` at the end alone."""
    return name if "*" not in name else name[: name.index("*") + 1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

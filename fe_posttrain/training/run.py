"""The run folder: what a run was, and what it measured.

recipe.yaml      the resolved recipe, with every default filled in
versions.json    Python, libraries, git commit and whether the tree was clean
metrics.jsonl    one row per logged step, appended as it happens
checkpoint-STEP/ whole checkpoints, each with a manifest (fe_posttrain.training.checkpoints)
summary.json     start and end of what was tracked; written last, so its presence means the run finished
model/           the final weights and tokenizer, as save_pretrained writes them
"""

import json
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

logger = logging.getLogger(__name__)

PACKAGES = ("fe_posttrain", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "wandb", "numpy")


class RunFolder:
    """A folder of its own for one run; with `shared` one that several results lie in, with `resumed` one in use.

    Raises:
        ValueError: the folder exists and holds something.
    """

    def __init__(self, path: str | Path, *, shared: bool = False, resumed: bool = False):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output_dir: {self.path} is a file; a run needs a folder of its own; write another path")
        if not (shared or resumed) and self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(
                f"output_dir: {self.path} is not empty; a run needs a folder of its own so that nothing is "
                "overwritten; write another path, leave output_dir out for a fresh one, or continue it by --resume"
            )
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> None:
        """Write a file whole or not at all."""
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=f".{name}.")
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.path / name)

    def write_json(self, name: str, content: Any) -> None:
        self.write(name, json.dumps(plain(content), indent=2) + "\n")

    def describe(self, recipe: dict[str, Any], tasks: dict[str, str]) -> None:
        """Write the resolved recipe, the versions of libraries and `tasks`, and the state of the code."""
        self.write("recipe.yaml", yaml.safe_dump(plain(recipe), sort_keys=True, allow_unicode=True))
        self.write_json(
            "versions.json",
            {"python": sys.version.split()[0], **library_versions(), "tasks": tasks, "git": _git_state()},
        )

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def cut_metrics(self, size: int) -> None:
        """Forget the rows after the first `size` bytes; they belong to steps that will be done again."""
        if self.metrics.exists():
            os.truncate(self.metrics, min(size, self.metrics.stat().st_size))


class MetricsCallback(TrainerCallback):
    """Appends what the trainer logs to `metrics.jsonl`, once, from the main process.

    While the disk is full, rows wait in memory and one warning says so.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.started = time.time()
        self._waiting: list[str] = []

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs:
            seconds = round(time.time() - self.started, 3)
            row = {"step": state.global_step, "seconds": seconds, **logs}
            self._waiting.append(json.dumps(plain(row)) + "\n")
            self._write()

    def checkpoint_state(self) -> dict[str, float]:
        """Where the file ends: `metrics.jsonl` is cut to this when a run resumes."""
        size = self.folder.metrics.stat().st_size if self.folder.metrics.exists() else 0
        return {"bytes": size, "seconds": time.time() - self.started, "waiting": self._waiting}

    def load_checkpoint_state(self, kept: dict[str, float]) -> None:
        self.folder.cut_metrics(kept["bytes"])
        self.started = time.time() - kept["seconds"]
        self._waiting = kept["waiting"]

    def _write(self) -> None:
        end = self.folder.metrics.stat().st_size if self.folder.metrics.exists() else 0
        try:
            with open(self.folder.metrics, "a") as file:
                file.write("".join(self._waiting))
        except OSError as error:
            if len(self._waiting) == 1:
                logger.warning("metrics.jsonl: %s; rows wait in memory until there is room", error)
            self.folder.cut_metrics(end)  # no half row
        else:
            self._waiting = []


class StopSignals:
    """While active, the first SIGTERM or SIGINT asks for a stop and the second one leaves at once.

    `received` is the signal that asked, or None.
    """

    def __init__(self, say: Callable[[str], None]):
        self.received: signal.Signals | None = None
        self._say = say
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        return self.received is not None

    def _handle(self, number: int, frame) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number)
        self._say(f"{self.received.name}: finishing this generation block and saving; once more leaves at once")


def decide_together(decide: Callable[[], Any]) -> Any:
    """What `decide` returns on the main process, on every process; a ValueError of it is raised on all of them."""
    answer = [None, None]
    if PartialState().is_main_process:
        try:
            answer[0] = decide()
        except ValueError as error:
            answer[1] = error
    answer = broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def library_versions() -> dict[str, str]:
    """Installed version of each library whose behaviour a run depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _git_state() -> dict[str, Any] | str:
    """Commit and cleanliness of the checkout that this package runs from."""
    where = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(where), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "clean": not git("status", "--porcelain").strip()}
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"


def plain(value: Any) -> Any:
    """What JSON and safe YAML can hold: numbers that are no number become None, everything unknown its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or type(value) in (bool, int, str):
        return value
    return str(value)

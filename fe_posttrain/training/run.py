"""The run folder: what a run was, and what it measured.

recipe.yaml      the resolved recipe, with every default filled in
versions.json    Python, libraries, git commit and whether the tree was clean
metrics.jsonl    one row per logged step, appended as it happens (fe_posttrain.training.recording)
events.jsonl     what happened between the rows: probes with their report, faults, checkpoints, alarms
samples/         completions, as Parquet
report.html      the run on one page (fe_posttrain.view.page.report)
checkpoint-STEP/ whole checkpoints, each with a manifest (fe_posttrain.training.checkpoints)
summary.json     start and end of what was tracked; written last, so its presence means the run finished
model/           the final weights and tokenizer, as save_pretrained writes them
"""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from fe_posttrain.whole_files import write_whole

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
        write_whole(self.path / name, text)

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

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"


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

"""The run folder: what a run was, and what it measured.

recipe.yaml      the resolved recipe, with every default filled in
versions.json    Python, libraries, git commit and whether the tree was clean
metrics.jsonl    one row per logged step, appended as it happens
summary.json     start and end of what was tracked; written last, so its presence means the run finished
model/           the final weights and tokenizer, as save_pretrained writes them
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

PACKAGES = ("fe_posttrain", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "wandb", "numpy")


class RunFolder:
    """A folder of its own for one run, or with `shared` one that several results lie in.

    Raises:
        ValueError: the folder exists and holds something.
    """

    def __init__(self, path: str | Path, *, shared: bool = False):
        self.path = Path(path)
        if not shared and self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(
                f"output_dir: {self.path} is not empty; a run needs a folder of its own so that nothing is "
                "overwritten; write another path, or leave output_dir out for a fresh one"
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
        self.write(name, json.dumps(_plain(content), indent=2) + "\n")

    def describe(self, recipe: dict[str, Any], tasks: dict[str, str]) -> None:
        """Write the resolved recipe, the versions of libraries and `tasks`, and the state of the code."""
        self.write("recipe.yaml", yaml.safe_dump(_plain(recipe), sort_keys=True, allow_unicode=True))
        self.write_json(
            "versions.json",
            {"python": sys.version.split()[0], **library_versions(), "tasks": tasks, "git": _git_state()},
        )

    def append_metrics(self, row: dict[str, Any]) -> None:
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(_plain(row)) + "\n")


class MetricsCallback(TrainerCallback):
    """Appends what the trainer logs to `metrics.jsonl`, once, from the main process."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.started = time.time()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if state.is_world_process_zero and logs:
            seconds = round(time.time() - self.started, 3)
            self.folder.append_metrics({"step": state.global_step, "seconds": seconds, **logs})


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


def _plain(value: Any) -> Any:
    """What JSON and safe YAML can hold: numbers that are no number become None, everything unknown its text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or type(value) in (bool, int, str):
        return value
    return str(value)

"""Run a comparison: what is finished stays, what was begun is resumed, one run after the other."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from fe_posttrain.recipe.comparison import Comparison, Run
from fe_posttrain.recipe.opening import MAY_DIFFER, resolved
from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.recipe.tuning import tuned
from fe_posttrain.view.text import duration

# What a launch fills in, or what depends on how many processes there are.
_FILLED = frozenset(
    "files generation_batch_size model_init_kwargs chat_template_path reward_model_name_or_path".split()
)
_SHOWN = 15  # last lines of a run that failed


class RunFailed(Exception):
    """A run ended with an error, or a signal ended the comparison; `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def is_finished(run: Run) -> bool:
    """Whether it wrote its summary, which comes last."""
    return (Path(run.folder) / "summary.json").is_file()


def command(run: Run, launch: Sequence[str], script: str) -> list[str]:
    """What starts the run, or goes on with it where its folder holds something."""
    folder = Path(run.folder)
    begun = folder.is_dir() and any(folder.iterdir())
    return [*launch, script, *run.words, *(["--resume"] if begun else [])]


def print_commands(comparison: Comparison, output_dir: str, script: str) -> None:
    """The command of every run that is not finished, one a line; of trials first, which choose the settings of runs."""
    trials = [run for run in comparison.trials(output_dir) if not is_finished(run)]
    runs = trials or [run for run in tuned(comparison, output_dir).runs(output_dir) if not is_finished(run)]
    for run in runs:
        print(shlex.join(command(run, comparison.launch, script)))
    if trials:
        print("# trials: when they have finished, --print tells the runs")


def run_all(comparison: Comparison, output_dir: str, script: str, console: Console) -> None:
    """Start every trial and then every run that is not finished, in turn.

    Raises:
        RecipeError: a folder belongs to a run of other settings; nothing is started.
        RunFailed: a run ended with an error, or a signal came; the runs before are finished.
    """
    _run_each(comparison.trials(output_dir), comparison.launch, script, console)
    _run_each(tuned(comparison, output_dir).runs(output_dir), comparison.launch, script, console)


def _run_each(runs: Sequence[Run], launch: Sequence[str], script: str, console: Console) -> None:
    require_same_settings(runs)
    for number, run in enumerate(runs, 1):
        place = f"[{number}/{len(runs)}] {run.name}"
        if is_finished(run):
            console.print(f"{place}: finished before", highlight=False, markup=False)
            continue
        _start(run, command(run, launch, script), place, console)


def require_same_settings(runs: Sequence[Run]) -> None:
    """Raise a RecipeError where folders hold runs of other settings: one line for each setting of each run."""
    lines = []
    for run in runs:
        for key, then, now in _differences(run):
            lines.append(
                f"{run.folder}: {key}: {json.dumps(then)} there, {json.dumps(now)} now; results would mix two "
                "recipes; write it as it was, remove that folder, or write another --output_dir"
            )
    if lines:
        raise RecipeError("\n".join(lines))


def _differences(run: Run) -> list[tuple[str, Any, Any]]:
    """Key, value there and value now of what differs between the folder's recipe and this one."""
    path = Path(run.folder) / "recipe.yaml"
    if not path.is_file():
        return []
    from fe_posttrain.recipe.checks import resolve

    settings, args, model = resolve(run.arm.recipe, run.words[2:])
    tokens = {"eos_token": args.eos_token, "pad_token": args.pad_token}
    then = yaml.safe_load(path.read_text())
    now = resolved([vars(settings), vars(model), args.to_dict(), tokens], [])
    keys = sorted((then.keys() | now.keys()) - MAY_DIFFER - _FILLED)
    found = [(key, then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)]
    for name, kept in then["files"].items():
        if Path(name).is_file() and (is_now := resolved([], [Path(name)])["files"][name]) != kept:
            found.append((f"content of {name}", kept[:12], is_now[:12]))
    return found


def _start(run: Run, words: list[str], place: str, console: Console) -> None:
    """One run; what it says goes to a file beside its folder, and its last line is shown while it works."""
    log = Path(f"{run.folder}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    began, said = time.monotonic(), []
    with open(log, "a", encoding="utf-8") as file, console.status(place) as status:
        with (
            subprocess.Popen(
                [_program(words[0]), *words[1:]],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            ) as child,
            _passed_on_to(child) as received,
        ):
            for line in child.stdout:
                file.write(line)
                file.flush()
                said = [*said[1 - _SHOWN :], line.rstrip()]
                if line.startswith("step "):
                    status.update(f"{place}: {line.split('  ')[0].strip()}")
    took = duration(time.monotonic() - began)
    code = 128 - child.returncode if child.returncode < 0 else child.returncode  # as a shell has it
    if code or not is_finished(run):
        raise RunFailed(
            f"{place}: exit code {code} after {took}; it said last, all of it in {log}:\n"
            + "\n".join(f"  {line}" for line in said)
            + "\nthe same command again goes on from here",
            code or 1,
        )
    console.print(f"{place}: finished in {took}", highlight=False, markup=False)
    if received:  # the run was about to end anyway
        name = signal.Signals(received[0]).name
        raise RunFailed(f"{name}: stopped after this run; the same command again goes on from here", 128 + received[0])


@contextmanager
def _passed_on_to(child: subprocess.Popen) -> Iterator[list[int]]:
    """Pass signals on to the run and everything below it, which saves and ends; gives those that were received."""
    received: list[int] = []

    def pass_on(number: int, frame) -> None:
        received.append(number)
        os.killpg(child.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _program(word: str) -> str:
    """The program of that name beside this Python, which need not be on the PATH; else as it is."""
    own = Path(sys.executable).parent
    return shutil.which(word, path=os.pathsep.join([str(own), os.environ.get("PATH", "")])) or word

"""What logging costs a step: scripts/bench.py --logging.

The quick start, launched as always with wandb offline and the terminal's live panel. Every method by which the trainer
calls what records, shows, mirrors or watches the run is timed: CPU time of this process, its threads included; and the
CPU time of wandb's service, which is a process of its own. What is done once, when training begins, is kept apart from
what a step costs. Tracking of support is no logging: see bench_support.py.
"""

import contextlib
import io
import os
import tempfile
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

WATCHED = {  # class: where it is
    "RunRecorder": "fe_posttrain.training.recording",
    "RolloutSamples": "fe_posttrain.training.recording",
    "Alarms": "fe_posttrain.training.alarms",
    "TerminalCallback": "fe_posttrain.view.terminal.callback",
    "WandbCallback": "fe_posttrain.view.board.mirror",
    "ReportCallback": "fe_posttrain.view.page.callback",
}
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.yaml"
STEP, PROBE, ONCE = "step", "probe", "once"


class _Clock:
    """CPU seconds by kind and callback; an event handed on by another callback counts for the inner one alone."""

    def __init__(self):
        self.spent: dict[str, dict[str, float]] = {kind: defaultdict(float) for kind in (STEP, PROBE, ONCE)}
        self._inside: list[tuple[str, str]] = []

    def timed(self, method, name: str):
        def timed(*args, **kwargs):
            kind = PROBE if kwargs.get("event") == "probe" else ONCE if method.__name__ == "on_train_begin" else STEP
            self._inside.append((kind, name))
            started = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                took = time.process_time() - started
                self._inside.pop()
                self.spent[kind][name] += took
                if self._inside:
                    kind, outer = self._inside[-1]
                    self.spent[kind][outer] -= took

        return timed


def measure(steps: int = 300) -> dict:
    """CPU milliseconds per step of each callback and of wandb's service; per probe; and seconds once."""
    os.environ |= {"WANDB_MODE": "offline", "FORCE_COLOR": "1", "TERM": "xterm-256color"}  # the live panel is drawn
    os.environ.pop("CI", None)
    clock, service = _Clock(), []
    for name, module in WATCHED.items():
        owner = getattr(import_module(module), name)
        for method in [method for method in vars(owner) if method.startswith("on_") or method == "metrics_to_log"]:
            setattr(owner, method, clock.timed(getattr(owner, method), name))
    board = import_module(WATCHED["WandbCallback"]).WandbCallback
    for method in ("on_train_begin", "on_train_end"):
        setattr(board, method, _then(getattr(board, method), lambda: service.append(_of_service())))
    from fe_posttrain.recipe.launch import launch
    from fe_posttrain.training.run import library_versions

    words = ["--max_steps", str(steps), "--support_steps", str(steps // 2)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        launch(str(RECIPE), ["--output_dir", f"{folder}/run", *words])
    each = {name: 1e3 * seconds / steps for name, seconds in clock.spent[STEP].items()}
    each["wandb's service"] = 1e3 * (service[-1] - service[0]) / steps
    return {
        "steps": steps,
        "ms_per_step": each,
        "sum": sum(each.values()),
        "ms_per_probe": {name: 1e3 * seconds / 2 for name, seconds in clock.spent[PROBE].items()},
        "seconds_once": sum(clock.spent[ONCE].values()),
        "versions": library_versions(),
    }


def show(record: dict, console: Console) -> None:
    """The record for a person."""
    shown = Table("logging, CPU milliseconds", box=None, header_style="bold")
    for title in ("a step", "a probe"):
        shown.add_column(title, justify="right")
    probed = record["ms_per_probe"]
    for name, cost in record["ms_per_step"].items():
        shown.add_row(name, f"{cost:.2f}", f"{probed[name]:.0f}" if name in probed else "")
    shown.add_row("[bold]all[/bold]", f"[bold]{record['sum']:.2f}[/bold]", f"{sum(probed.values()):.0f}")
    console.print(shown)
    console.print(f"and {record['seconds_once']:.1f} CPU-seconds once, when training begins", style="dim")


def _then(method, after):
    def both(*args, **kwargs):
        result = method(*args, **kwargs)
        after()
        return result

    return both


def _of_service() -> float:
    """CPU seconds of wandb's service so far."""
    children = [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]
    return sum(sum(child.cpu_times()[:2]) for child in children)

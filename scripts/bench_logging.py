"""What logging costs a step: scripts/bench.py --logging.

The quick start, launched as always with wandb offline. Every method by which the trainer calls what records, shows,
mirrors or watches the run is timed: CPU time of this process, its threads included; and the CPU time of wandb's
service, which is a process of its own. Tracking of support is no logging: see bench_support.py.
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

WATCHED = {  # class: where it is
    "RunRecorder": "fe_posttrain.training.recording",
    "RolloutSamples": "fe_posttrain.training.recording",
    "Alarms": "fe_posttrain.training.alarms",
    "TerminalCallback": "fe_posttrain.view.terminal",
    "WandbCallback": "fe_posttrain.view.wandb_run",
    "ReportCallback": "fe_posttrain.view.report_callback",
}
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart.yaml"


def measure(steps: int = 200) -> dict:
    """CPU milliseconds per step: of each callback, of wandb's service, and of all together."""
    os.environ["WANDB_MODE"] = "offline"
    spent: dict[str, float] = defaultdict(float)
    inside: list[str] = []  # an event is handed on by another callback: time counts once, for the inner one
    for name, module in WATCHED.items():
        owner = getattr(import_module(module), name)
        for method in [method for method in vars(owner) if method.startswith("on_") or method == "metrics_to_log"]:
            setattr(owner, method, _timed(getattr(owner, method), name, spent, inside))
    service: list[float] = []
    board = import_module(WATCHED["WandbCallback"]).WandbCallback
    leave = board.__exit__

    def noted(self, *args):
        service.append(_of_service())
        return leave(self, *args)

    board.__exit__ = noted
    from fe_posttrain.recipe.launch import launch

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        launch(str(RECIPE), ["--output_dir", f"{folder}/run", "--max_steps", str(steps), "--support_steps", "50"])
    each = {name: 1e3 * seconds / steps for name, seconds in spent.items()}
    each["wandb's service"] = 1e3 * service[0] / steps
    reports = each.pop("ReportCallback", 0.0)
    return {"steps": steps, "ms_per_step": each, "sum": sum(each.values()), "reports_ms_per_step": reports}


def _timed(method, name: str, spent: dict[str, float], inside: list[str]):
    def timed(*args, **kwargs):
        started = time.process_time()
        inside.append(name)
        try:
            return method(*args, **kwargs)
        finally:
            inside.pop()
            took = time.process_time() - started
            spent[name] += took
            if inside:
                spent[inside[-1]] -= took

    return timed


def _of_service() -> float:
    """CPU seconds of wandb's service so far."""
    children = [child for child in psutil.Process().children(recursive=True) if "wandb" in child.name()]
    return sum(sum(child.cpu_times()[:2]) for child in children)

"""What tracking of support costs: scripts/bench.py --support.

Of a step: one run on the testbed, in blocks of 16 steps that take turns: without tracking, with ledger and riding
metrics, with displacement beside them. Two readings: the ratio of mean step times of the blocks, and, more closely,
the time inside the event and its log row over the time of the step.

Of a run: recipes/rl.yaml, whose probes come at the default cadence, at the end alone. CPU time inside the probe, what
shows its result left out (that is logging: bench_logging.py), over that of training; and the reference's bank, which
is drawn once and kept for later runs, over the same.
"""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from unittest.mock import patch

import bench_arms
import numpy as np
from bench_cells import Testbed
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

from fe_posttrain import FreeEnergyTrainer, SupportCallback, SupportSettings
from fe_posttrain.recipe.launch import launch
from fe_posttrain.tasks import digits
from fe_posttrain.tracking import callback
from fe_posttrain.training.run import library_versions

BLOCK = 16  # steps of one turn: two windows
TURNS = ("off", "ledger", "displacement")
BARS = {"ledger": 0.01, "displacement": 0.04, "all": 0.07}  # shares at most; each with what stands before it
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "rl.yaml"


class _Turns(TrainerCallback):
    """Takes tracking out of the trainer and puts it back, and keeps the time of every step and event."""

    def __init__(self, trainer, support: SupportCallback):
        self.trainer, self.support = trainer, support
        self.steps: dict[str, list[float]] = {name: [] for name in TURNS}
        self.inside: dict[str, list[float]] = {name: [] for name in TURNS}
        self.displacements = None
        self._event, self._started = 0.0, bench_arms.mark()
        support.metrics_to_log = self._timed(support.metrics_to_log)
        events = trainer._events
        events.made, events.scored = self._timed(events.made), self._timed(events.scored)

    def _timed(self, function):
        def timed(*args):
            started = bench_arms.mark()
            result = function(*args)
            self._event += bench_arms.seconds(started, bench_arms.mark())
            return result

        return timed

    def turn(self, step: int) -> str:
        return TURNS[step // BLOCK % len(TURNS)]

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.displacements = self.support.displacements

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        name, callbacks = self.turn(state.global_step), self.trainer.callback_handler.callbacks
        if (self.support in callbacks) == (name == "off"):
            callbacks.remove(self.support) if name == "off" else callbacks.append(self.support)
        self.support.displacements = self.displacements if name == "displacement" else None
        if state.global_step % BLOCK == 0 and self.displacements is not None:
            self.displacements.kept = None  # a window does not reach over turns

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now, name = bench_arms.mark(), self.turn(state.global_step - 1)
        if state.global_step > BLOCK * len(TURNS):  # the first turns warm up
            self.steps[name].append(bench_arms.seconds(self._started, now))
            self.inside[name].append(self._event)
        self._started, self._event = now, 0.0


def measure(rounds: int = 24) -> dict:
    """Shares of a step's time, from `rounds` turns of each kind; shares of a run's; and both against the bars."""
    found = of_step(rounds) | {"probes": of_run()}
    shares = {name: found[name]["share_inside_event"] for name in TURNS[1:]}
    shares["all"] = shares["displacement"] + found["probes"]["share"]
    found["bars"] = {name: {"share": share, "at_most": BARS[name]} for name, share in shares.items()}
    return found | {"versions": library_versions()}


def of_run(*words: str) -> dict:
    """Shares of the CPU time of training by `RECIPE`, changed by `words` of the command line, without the bank's."""
    spent: dict[str, float] = defaultdict(float)

    def timed(function, name: str):
        def run(*args, **kwargs):
            started = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent[name] += time.process_time() - started

        return run

    parts = [
        (FreeEnergyTrainer, "train"),
        (SupportCallback, "_probe"),
        (SupportCallback, "_prepare"),
        (callback, "tell"),
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        patches.enter_context(contextlib.redirect_stdout(io.StringIO()))
        patches.enter_context(patch.object(callback, "banks_folder", lambda: Path(folder) / "banks"))
        for owner, name in parts:
            patches.enter_context(patch.object(owner, name, timed(getattr(owner, name), name)))
        launch(str(RECIPE), ["--output_dir", f"{folder}/run", *words])
        require_on(json.loads((Path(folder) / "run" / "summary.json").read_text())["support"])
    probe, bank = spent["_probe"] - spent["tell"], spent["_prepare"]
    run = spent["train"] - bank
    return {"recipe": RECIPE.name, "share": probe / run, "seconds": probe, "run_seconds": run,
            "bank_share": bank / run, "bank_seconds": bank, "shown_seconds": spent["tell"]}  # fmt: skip


def require_on(summary: dict) -> None:
    """Stop where tracking switched itself off: its time would be too short."""
    if "off" in summary:
        raise RuntimeError(f"tracking was switched off: {summary['off']}")


def of_step(rounds: int) -> dict:
    """Shares of a step's time; `rounds` turns of each kind."""
    work = Testbed(steps=(rounds + 1) * len(TURNS) * BLOCK)
    run = work.build(bench_arms.OURS)
    rows = [{"prompt": prompt} for prompt in digits.prompts("tail_10", 4, 0, "probe")]
    settings = SupportSettings(support=True, support_draws=4, support_reference_draws=4)
    with tempfile.TemporaryDirectory() as cache:
        support = SupportCallback(rows, digits.correct, settings=settings, cache=Path(cache))
        run.add_callback(support)
        turns = _Turns(run, support)
        run.add_callback(turns)
        run.train()
    require_on(support.summary())
    means = {name: statistics.fmean(times) for name, times in turns.steps.items()}
    found = {"step_ms_without": 1e3 * means["off"]}
    for name in TURNS[1:]:
        inside = np.array(turns.inside[name]).reshape(-1, BLOCK).mean(1)
        share = inside.mean() / (means["off"] + inside.mean())
        found[name] = {
            "share_inside_event": float(share),
            "share_se": float(inside.std(ddof=1) / np.sqrt(len(inside)) / means["off"]),
            "ratio_of_steps": means[name] / means["off"],
            "ratio_se": float(_ratio_error(turns.steps[name], turns.steps["off"])),
        }
    found["bytes_per_prompt"] = support.summary()["ledger"]["bytes_per_prompt"]
    found["settings"] = {"block": BLOCK, **vars(work)}
    return found


def _ratio_error(times: list[float], base: list[float]) -> float:
    """Standard error of the ratio of two means."""
    errors = [np.std(x, ddof=1) / np.sqrt(len(x)) / np.mean(x) for x in (times, base)]
    return float(np.mean(times) / np.mean(base) * np.hypot(*errors))


def show(record: dict, console: Console) -> None:
    """The record for a person."""
    shown = Table("tracking, share of the time", box=None, header_style="bold")
    for title in ("share", "se", "bar", "ratio of steps", "se"):
        shown.add_column(title, justify="right", no_wrap=True)
    words = {
        "ledger": "ledger and riding metrics",
        "displacement": "displacement beside them",
        "all": "probes beside them",
    }
    for name, what in words.items():
        bar, part = record["bars"][name], record.get(name)
        cells = ["", ""]
        if part:
            cells = [f"{part['ratio_of_steps']:.3f}", f"{part['ratio_se']:.3f}"]
        error = f"{part['share_se']:.2%}" if part else ""
        shown.add_row(what, f"{bar['share']:.2%}", error, f"<= {bar['at_most']:.0%}", *cells)
    console.print(shown)
    probes = record["probes"]
    console.print(
        f"a step without: {record['step_ms_without']:.1f} ms; {record['bytes_per_prompt']} bytes a prompt; "
        f"{probes['recipe']}: probes {probes['seconds']:.2f} of {probes['run_seconds']:.1f} s; the reference's bank, "
        f"once, {probes['bank_seconds']:.2f} s",
        style="dim",
    )

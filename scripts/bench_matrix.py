"""The matrix of scripts/bench.py: cells of `bench_cells` measured arm against arm, each figure beside its bar."""

import logging
import math
import multiprocessing
import os
import platform
import statistics
import warnings

import bench_arms
import bench_looks
import torch
from bench_cells import Cell, Demonstrations, Rollouts, testbed_folder
from bench_pairs import INTERVAL, alternate, ratio
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fe_posttrain.training.run import library_versions

MIB = 2**20
MEANING = {
    "seconds": "of one optimizer step: process CPU time with one thread, or on a GPU the time between CUDA events; "
    "medians of the runs. Generation, scoring (reference, rewards, shaping) and update (the rest: loss, backward, "
    "optimizer, the Trainer's loop). The first steps of a run are not in it. Arms alternate in one process, and every "
    "cell has one of its own: what an allocator has learnt from large tensors speeds small ones up.",
    "times_as_fast": "the other arm's seconds over ours, median of the pairs: one run of each in the same round, with "
    "the same seed.",
    "interval": INTERVAL,
    "length": "mean completion, tokens, of the timed steps. Runs of two arms whose lengths are not of one law are "
    "refused: equal where the cell fixes them, else within five standard errors.",
    "gradients": "of one step on the same completions: largest over parameters of max|a - b| / max|b|. Nothing is "
    f"timed beyond {bench_looks.TOLERANCE:g}.",
    "flops": "of one step, counted by torch's FlopCounterMode: products of matrices and attention (unmasked), forward "
    "and backward. What is done is counted, so an arm that does less has less.",
    "of_roof": "FLOPs over seconds, over the fastest product of two matrices of the model's size (tokens of a step x "
    "hidden x intermediate) in the model's precision, timed in the same run on the same device and threads.",
    "update_mib": "rise of tensors' memory from the start of the loss's forward to the end of the backward, MiB: "
    "activations, logits and gradients; not weights, optimizer, reference and rollouts. On a CPU every allocation of "
    "torch's allocator is recorded (torch.profiler), so it is the same at every run and knows nothing of pages, of the "
    "interpreter or of scratch space inside kernels; on a GPU max_memory_allocated.",
}


def measure(cells: dict[str, Cell], pairs: int, console: Console) -> dict:
    """The record of these cells."""
    load, found = {"before": os.getloadavg()}, {}
    fresh = multiprocessing.get_context("spawn").Pool(1, _quietly, maxtasksperchild=1)
    with console.status("") as status, fresh:
        for name, cell in cells.items():
            status.update(f"{name}: {cell.what}")
            found[name] = fresh.apply(measured, (cell, pairs))
            for line in (f"{name}  {cell.what}", *(f"   {line}" for line in details(found[name]))):
                console.print(line, highlight=False, markup=False, soft_wrap=True, style="dim")
    return {
        "cells": found,
        "meaning": MEANING,
        "settings": {"device": torch.cuda.get_device_name() if bench_arms.GPU else "cpu, one thread", "pairs": pairs},
        "load": {**load, "after": os.getloadavg(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **library_versions()},
    }


def _quietly() -> None:
    """In a cell's process: without what trainers say of their settings."""
    logging.getLogger("fe_posttrain").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def measured(cell: Cell, pairs: int) -> dict:
    """The record of one cell.

    Raises:
        RuntimeError: gradients or lengths of its arms differ, so that times would not be of the same work.
    """
    testbed_folder()  # from its own cache
    os.environ["FE_POSTTRAIN_CACHE"] = f"{bench_arms.scratch.name}/cache"
    work, runs_rollouts = cell.work, not isinstance(cell.work, Demonstrations)
    found = {"what": cell.what, "work": _plain(work)}
    if runs_rollouts:
        found["gradients"] = bench_looks.same_gradients(getattr(work, "in_full_precision", work))
    arms = {name: {"flops": bench_looks.flops(work, arm)} for name, arm in cell.arms.items()}
    for name, arm in cell.arms.items():
        arms[name]["update_mib"] = bench_looks.update_bytes(work, arm) / MIB
    runs = alternate(list(cell.arms), pairs, lambda name, i: _timed(cell, name, seed=i))
    roof = _roof(work)
    for name, times in runs.items():
        arms[name] |= _summary(work, times, arms[name]["flops"], roof)
    if isinstance(work, Rollouts):
        require_same_lengths(work, {name: arm["length"] for name, arm in arms.items()}, pairs)
    found |= {"arms": arms, "roof_flops_per_second": roof, "time": [_time(bar, runs) for bar in cell.bars]}
    found["memory"] = _memory(cell, arms)
    return found


def _plain(work) -> dict:
    """A workload as JSON values."""
    values = vars(work).copy()
    if shape := values.pop("shape", None):
        values["model"] = vars(shape) | {"dtype": str(shape.dtype)}
    return values


def _timed(cell: Cell, name: str, seed: int) -> dict[str, float]:
    """One run; the arms of a round have one seed, and every round another."""
    kind, settings = cell.arms[name]
    work = cell.work
    return bench_arms.timed(work.build(kind, seed=seed, **settings), warm_up=work.warm_up, steps=work.steps)


def _roof(work) -> float | None:
    """FLOP/s that this device reaches on products of the size of this workload's model."""
    shape = getattr(work, "shape", None)
    if shape is None:
        return None
    tokens = round(max(work.tokens.values()))
    return bench_looks.roof(tokens, shape.hidden, shape.intermediate, shape.dtype)


def _summary(work, runs: list[dict[str, float]], flops: dict[str, float], roof: float | None) -> dict:
    """Medians of an arm's runs, and what follows from them."""
    took = {phase: statistics.median(run[phase] for run in runs) for phase in flops}
    found = {"seconds": took}
    if roof:
        found["of_roof"] = {phase: flops[phase] / took[phase] / roof for phase in flops}
        found["tokens_per_second"] = {
            phase: tokens / took[phase] for phase, tokens in work.tokens.items() if phase in took
        }
    if "length" in runs[0]:
        found["length"] = statistics.fmean(run["length"] for run in runs)
    return found


def require_same_lengths(work: Rollouts, lengths: dict[str, float], pairs: int) -> None:
    """Refuse arms whose completions are not of one law.

    Raises:
        RuntimeError: their mean lengths lie more than five standard errors apart.
    """
    drawn = work.batch * (work.steps - work.warm_up) * pairs
    spread = work.completion - (work.shortest or work.completion) + 1
    error = math.sqrt((spread**2 - 1) / 12 * 2 / drawn)
    if max(lengths.values()) - min(lengths.values()) > 5 * error:
        raise RuntimeError(f"mean lengths of completions differ, so times are not of the same work: {lengths}")


def verdict(figure: float, high: float, least: float) -> str:
    """`met`, `not met`, or `open`: the figure is below the bar, and the bar below the upper end of its interval."""
    return "met" if figure >= least else "open" if high >= least else "not met"


def _time(bar, runs: dict[str, list[dict[str, float]]]) -> dict:
    steps = {name: [run["step"] for run in runs[name]] for name in (bar.ours, bar.theirs)}
    found = ratio(steps[bar.theirs], steps[bar.ours])
    met = None if bar.least is None else verdict(found["ratio"], found["interval"][1], bar.least)
    return {"ours": bar.ours, "theirs": bar.theirs, "times_as_fast": found.pop("ratio"), **found,
            "at_least": bar.least, "met": met}  # fmt: skip


def _memory(cell: Cell, arms: dict) -> dict:
    first = cell.bars[0]
    share = arms[first.ours]["update_mib"] / arms[first.theirs]["update_mib"]
    met = None if cell.memory is None else verdict(-share, -share, -cell.memory)
    return {"ours": first.ours, "theirs": first.theirs, "ratio": share, "at_most": cell.memory, "met": met}


def table(record: dict) -> Table:
    """The record for a person."""
    shown = Table(box=None, header_style="bold")
    for title, side in (("", "left"), ("figure", "right"), ("interval", "right"), ("bar", "right"), ("", "left")):
        shown.add_column(title, justify=side, no_wrap=True)
    for name, cell in record["cells"].items():
        shown.add_row(f"[bold]{name}  {escape(cell['what'])}[/bold]")
        for row in cell["time"]:
            interval = "{:.2f} to {:.2f}".format(*row["interval"])
            bar = "" if row["at_least"] is None else f">= {row['at_least']:.3g}"
            figure = f"[bold]{row['times_as_fast']:.2f} x[/bold]"
            shown.add_row(f"  time, {row['theirs']} / {row['ours']}", figure, interval, bar, _word(row["met"]))
        memory = cell["memory"]
        bar = "" if memory["at_most"] is None else f"<= {memory['at_most']:.3g}"
        what = f"  update's memory, {memory['ours']} / {memory['theirs']}"
        shown.add_row(what, f"[bold]{memory['ratio']:.3f}[/bold]", "", bar, _word(memory["met"]))
    return shown


COLOURS = {"met": "green", "open": "yellow", "not met": "red"}


def _word(met: str | None) -> str:
    return f"[{COLOURS[met]}]{met}[/]" if met else ""


def details(cell: dict) -> list[str]:
    """One line for each arm of a cell, and one for its gradients."""
    lines = []
    for name, arm in cell["arms"].items():
        took, phases = arm["seconds"], [phase for phase in arm["seconds"] if phase != "step"]
        parts = [f"{took['step']:.3g} s a step"]
        if phases:
            parts[0] += " = " + " + ".join(f"{phase} {took[phase]:.2g}" for phase in phases)
        parts += [f"{arm['flops']['step'] / 1e9:.3g} GFLOP", f"update {arm['update_mib']:.0f} MiB"]
        if "of_roof" in arm:
            parts.append("of the roof " + ", ".join(f"{phase} {share:.0%}" for phase, share in arm["of_roof"].items()))
            parts += [f"{phase} {speed:,.0f} tokens/s" for phase, speed in arm["tokens_per_second"].items()]
        if "length" in arm:
            parts.append(f"mean length {arm['length']:.1f}")
        lines.append(f"{name}: " + "; ".join(parts))
    if "gradients" in cell:
        apart = "; ".join(f"{name} {value:.1g}" for name, value in cell["gradients"].items())
        lines.append(f"gradients apart, relative: {apart}")
    return lines

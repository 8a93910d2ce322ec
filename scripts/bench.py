#!/usr/bin/env python3
"""Time per optimizer step and peak memory against TRL's trainers, on the same model, data and batch.

    scripts/bench.py                          GRPOTrainer, RLOOTrainer and SFTTrainer, about 4 minutes
    scripts/bench.py --pairs 5 --only rloo    one of them, quicker
    scripts/bench.py --support                what tracking of support costs a step, about 2 minutes
    scripts/bench.py --logging                what records, shows and mirrors a run, CPU time a step, about 1 minute
    scripts/bench.py --json result.json       and keep the record

A ratio below 1 means less than TRL; the intervals are of the median ratio. Time is taken on the testbed's model,
peak memory on a wider one, where weights, logits and activations outweigh what libraries load on the way.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMPARISONS = {  # what it is, and its two arms (bench_arms.py)
    "grpo": ("RL / GRPOTrainer", "ours_rl", "trl_grpo"),
    "rloo": ("RL / RLOOTrainer", "ours_rl", "trl_rloo"),
    "sft": ("SFT / SFTTrainer", "ours_sft", "trl_sft"),
}
MEANING = {
    "time_ms": "process CPU time (on a GPU: elapsed time) per optimizer step of the testbed's model, milliseconds: "
    "generation, rewards, reference, forward, backward, optimizer and the Trainer's loop, without the first steps of "
    "a run. One process and one thread; arms alternate, and a pair is one run of each arm in the same round.",
    "added_peak_mib": "how far the peak after training lies above the peak before the trainer was built, MiB, of the "
    "wider model: gradients, optimizer state, the reference, activations, logits, key-value cache, prepared data, "
    "code loaded on the way. Every run has a process of its own, in which glibc hands freed tensors back at once; as "
    "it is otherwise set, it keeps some, and runs of one arm differ by tens of MiB.",
    "peak_mib": "the whole peak of that process, MiB: resident memory, or on a GPU torch's max_memory_allocated. "
    "Beside the above it holds interpreter, libraries (the same imports for every arm), policy and data.",
    "interval": "of the median of the paired ratios, from order statistics: independent pairs, no law assumed. Its "
    "coverage, exact for a continuous law, is 1 - 2 P(Binomial(pairs, 1/2) < k) from the k-th smallest to the k-th "
    "largest ratio: the narrowest one of at least .95, or the whole range where too few pairs reach that.",
}


def median_interval(values: list[float], level: float = 0.95) -> tuple[float, float, float]:
    """Confidence interval of a median from order statistics: low, high, and the probability that it covers.

    The k-th smallest and the k-th largest of n draws miss the median when fewer than k draws fall on one of its
    sides; their number is Binomial(n, 1/2), so coverage is 1 - 2 P(Binomial(n, 1/2) <= k - 1): exact for a
    continuous law, a lower bound for others. Takes the largest k with coverage >= `level`, or 1 where none has.
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    coverage = {k: 1 - 2 * float(binom.cdf(k - 1, n, 0.5)) for k in range(1, (n + 1) // 2 + 1)}
    k = max((k for k in coverage if coverage[k] >= level), default=1)
    return ordered[k - 1], ordered[n - k], coverage[k]


def compare(ours: list[float], theirs: list[float]) -> dict:
    """Medians of both arms, and the median of their paired ratios with its interval."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, high, coverage = median_interval(ratios)
    return {
        "ours": statistics.median(ours),
        "trl": statistics.median(theirs),
        "ratio": statistics.median(ratios),
        "interval": [low, high],
        "coverage": coverage,
        "pairs": len(ratios),
    }


def alternate(names: list[str], rounds: int, measure: Callable) -> dict[str, list]:
    """Measure every arm once a round, in one order and then in the other."""
    found: dict[str, list] = {name: [] for name in names}
    for i in range(rounds):
        for name in names if i % 2 else reversed(names):
            found[name].append(measure(name))
    return found


def peak_in_own_process(name: str) -> dict[str, float]:
    """What bench_arms.py reports of one arm."""
    command = [sys.executable, str(Path(__file__).with_name("bench_arms.py")), name]
    glibc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # bytes; else both grow by use
    done = subprocess.run(command, env={**os.environ, **glibc}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: the run that measures its peak memory failed\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(keys: list[str], pairs: int, steps: int, console: Console) -> dict:
    """The record of these comparisons."""
    names = list(dict.fromkeys(name for key in keys for name in COMPARISONS[key][1:]))
    of_sft = [name for name in names if name.endswith("sft")]
    groups = [group for group in ([name for name in names if name not in of_sft], of_sft) if group]
    load = {"before": os.getloadavg()}
    # Memory first: this process must still be small when it starts the others (bench_arms.py says why).
    peaks, times, memory_rounds = {}, {}, max(1, pairs // 2)
    with console.status("") as status:
        for group in groups:
            status.update(f"peak memory of {', '.join(group)}")
            peaks |= alternate(group, memory_rounds, peak_in_own_process)
        status.update("loading libraries")
        import bench_arms

        from fe_posttrain.training.run import library_versions

        rows = bench_arms.data()
        timing = {"steps": steps, "warm_up": max(1, steps // 5)}
        for group in groups:
            status.update(f"time of {', '.join(group)}")
            alternate(group, 1, lambda name: bench_arms.time_per_step(name, rows, steps=3, warm_up=1))  # caches
            times |= alternate(group, pairs, lambda name: bench_arms.time_per_step(name, rows, **timing))
    found = {}
    for key in keys:
        what, ours, theirs = COMPARISONS[key]
        found[key] = {"what": what, "time_ms": compare(times[ours], times[theirs])}
        for kind in ("added_peak_mib", "peak_mib"):
            found[key][kind] = compare(*([peak[kind] for peak in peaks[name]] for name in (ours, theirs)))
    return {
        "comparisons": found,
        "meaning": MEANING,
        "settings": {
            "device": "cuda" if bench_arms.GPU else "cpu",
            "rollouts": bench_arms.ROLLOUTS,
            "time": {"batch": bench_arms.TIME_BATCH, **timing},
            "peak": {"batch": bench_arms.PEAK_BATCH, "steps": bench_arms.PEAK_STEPS, "model": bench_arms.WIDER},
        },
        "load": {**load, "after": os.getloadavg(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), **library_versions()},
    }


def table(record: dict) -> Table:
    """The record for a person."""
    shown = Table("ours / TRL's", box=None, header_style="bold")
    for title in ("ours", "TRL", "ratio", "interval", "covers", "pairs"):
        shown.add_column(title, justify="right", no_wrap=True)
    units = {"time_ms": "ms a step", "added_peak_mib": "peak MiB, added", "peak_mib": "peak MiB, in all"}
    for row in record["comparisons"].values():
        shown.add_row(f"[bold]{row['what']}[/bold]")
        for kind, unit in units.items():
            found = row[kind]
            arms = (f"{found['ours']:.1f}", f"{found['trl']:.1f}", f"[bold]{found['ratio']:.3f}[/bold]")
            interval = "{:.3f} to {:.3f}".format(*found["interval"])
            shown.add_row(f"  {unit}", *arms, interval, f"{found['coverage']:.1%}", str(found["pairs"]))
    return shown


def support_record(console: Console, rounds: int = 24) -> dict:
    """Measure and show what tracking costs."""
    with console.status("a run with tracking by turns"):
        import bench_support

        from fe_posttrain.training.run import library_versions

        record = bench_support.measure(rounds) | {"versions": library_versions()}
    shown = Table("tracking, share of a step", box=None, header_style="bold")
    for title in ("inside the event", "se", "ratio of steps", "se"):
        shown.add_column(title, justify="right", no_wrap=True)
    for name, what in (("ledger", "ledger and riding metrics"), ("displacement", "displacement beside them")):
        part = record[name]
        shares = f"{part['share_inside_event']:.2%}", f"{part['share_se']:.2%}"
        shown.add_row(what, *shares, f"{part['ratio_of_steps']:.3f}", f"{part['ratio_se']:.3f}")
    console.print(shown)
    console.print(
        f"a step without: {record['step_ms_without']:.1f} ms; {record['bytes_per_prompt']} bytes a prompt", style="dim"
    )
    return record


def logging_record(console: Console) -> dict:
    """Measure and show what logging costs."""
    import bench_logging

    from fe_posttrain.training.run import library_versions

    record = bench_logging.measure() | {"versions": library_versions()}
    shown = Table("logging, CPU milliseconds", box=None, header_style="bold")
    for title in ("a step", "a probe"):
        shown.add_column(title, justify="right")
    probed = record["ms_per_probe"]
    for name, cost in record["ms_per_step"].items():
        shown.add_row(name, f"{cost:.2f}", f"{probed[name]:.0f}" if name in probed else "")
    shown.add_row("[bold]all[/bold]", f"[bold]{record['sum']:.2f}[/bold]", f"{sum(probed.values()):.0f}")
    console.print(shown)
    console.print(f"and {record['seconds_once']:.1f} CPU-seconds once, when training begins", style="dim")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="runs of each arm; half as many for memory (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps of a timed run, a fifth not counted (%(default)s)")
    parser.add_argument("--only", choices=list(COMPARISONS), help="one comparison")
    parser.add_argument("--support", action="store_true", help="tracking on and off by turns in one run")
    parser.add_argument("--logging", action="store_true", help="what records, shows and mirrors a run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    words = parser.parse_args()
    if words.pairs < 1 or words.steps < 2:
        parser.error("--pairs is at least 1 and --steps at least 2")
    warnings.filterwarnings("ignore", category=FutureWarning)
    console = Console()
    if words.support or words.logging:
        record = support_record(console) if words.support else logging_record(console)
        if words.json:
            words.json.write_text(json.dumps(record, indent=2) + "\n")
        return
    record = measure([words.only] if words.only else list(COMPARISONS), words.pairs, words.steps, console)
    console.print(table(record))
    load = record["load"]
    ends = f"{load['before'][0]:.1f} before, {load['after'][0]:.1f} after"
    console.print(f"load of the machine {ends}, {load['cores']} cores", style="dim")
    if words.json:
        words.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

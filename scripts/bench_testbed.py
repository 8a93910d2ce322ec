"""Time and peak memory of a whole run on the testbed against TRL's trainers.

    scripts/bench_testbed.py grpo             peak memory of one arm, MiB, as JSON

Peak memory needs a process of its own. Start it from a small one: on Linux a child's `ru_maxrss` begins at the
resident memory of its parent.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys

from bench_pairs import INTERVAL, alternate, ratio
from rich.console import Console
from rich.table import Table

COMPARISONS = {  # what it is, and its two arms
    "grpo": ("RL / GRPOTrainer", "ours_rl", "grpo"),
    "rloo": ("RL / RLOOTrainer", "ours_rl", "rloo"),
    "sft": ("SFT / SFTTrainer", "ours_sft", "sft"),
}
MIB = 2**20
MEANING = {
    "time_ms": "process CPU time (on a GPU: time between CUDA events) per optimizer step of the testbed's model, "
    "milliseconds: generation, rewards, reference, forward, backward, optimizer and the Trainer's loop, without the "
    "first steps of a run. One process and one thread; arms alternate, and a pair is one run of each arm in the same "
    "round.",
    "added_peak_mib": "how far the peak after training lies above the peak before the trainer was built, MiB, of a "
    "wider model: gradients, optimizer state, the reference, activations, logits, key-value cache, prepared data, "
    "code loaded on the way. Every run has a process of its own, in which glibc hands freed tensors back at once; as "
    "it is otherwise set, it keeps some, and runs of one arm differ by tens of MiB.",
    "peak_mib": "the whole peak of that process, MiB: resident memory, or on a GPU torch's max_memory_allocated. "
    "Beside the above it holds interpreter, libraries (the same imports for every arm), policy and data.",
    "interval": INTERVAL,
}
PEAK = {"batch": 32, "steps": 2, "wider": True}  # the optimizer has its state from the second step on


def workload(arm: str, **changes):
    """What an arm trains on, its kind of trainer, and settings of its own."""
    from bench_arms import OURS, SFT
    from bench_cells import Testbed

    demonstrates = arm.endswith("sft")
    work = Testbed(**({"group": None} if demonstrates else {}) | changes)
    return work, OURS if arm.startswith(OURS) else arm, SFT if arm == "ours_sft" else {}


def time_per_step(arm: str, **changes) -> float:
    """Milliseconds per step of one run, without its first steps."""
    import bench_arms

    work, kind, settings = workload(arm, **changes)
    return 1e3 * bench_arms.timed(work.build(kind, **settings), warm_up=work.warm_up, steps=work.steps)["step"]


def peak_in_own_process(arm: str) -> dict[str, float]:
    """`peak_memory` of an arm."""
    glibc = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # bytes; else both grow by use
    done = subprocess.run([sys.executable, __file__, arm], env={**os.environ, **glibc}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arm}: the run that measures its peak memory failed\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory(arm: str, **changes) -> dict[str, float]:
    """Peak of one run in this process, MiB: whole, and above the peak before the trainer was built."""
    work, kind, settings = workload(arm, **PEAK | changes)
    loaded = work.load()
    before = _peak()
    work.build(kind, loaded, **settings).train()
    return {"peak_mib": _peak(), "added_peak_mib": _peak() - before}


def _peak() -> float:
    """Highest memory so far, MiB: resident memory of this process, or on a GPU what torch allocated there."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / MIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def compare(ours: list[float], theirs: list[float]) -> dict:
    """Medians of both arms, and the median of their paired ratios with its interval."""
    return {"ours": statistics.median(ours), "trl": statistics.median(theirs), **ratio(ours, theirs)}


def measure(keys: list[str], pairs: int, steps: int, console: Console) -> dict:
    """The record of these comparisons."""
    names = list(dict.fromkeys(name for key in keys for name in COMPARISONS[key][1:]))
    of_sft = [name for name in names if name.endswith("sft")]
    groups = [group for group in ([name for name in names if name not in of_sft], of_sft) if group]
    load = {"before": os.getloadavg()}
    # Memory first: this process must still be small when it starts the others.
    peaks, times, memory_rounds = {}, {}, max(1, pairs // 2)
    timing = {"steps": steps, "warm_up": max(1, steps // 5)}
    with console.status("") as status:
        for group in groups:
            status.update(f"peak memory of {', '.join(group)}")
            peaks |= alternate(group, memory_rounds, lambda name, _: peak_in_own_process(name))
        for group in groups:
            status.update(f"time of {', '.join(group)}")
            alternate(group, 1, lambda name, _: time_per_step(name, steps=3, warm_up=1))  # caches
            times |= alternate(group, pairs, lambda name, _: time_per_step(name, **timing))
    found = {}
    for key in keys:
        what, ours, theirs = COMPARISONS[key]
        found[key] = {"what": what, "time_ms": compare(times[ours], times[theirs])}
        for kind in ("added_peak_mib", "peak_mib"):
            found[key][kind] = compare(*([peak[kind] for peak in peaks[name]] for name in (ours, theirs)))
    return _record(found, timing) | {"load": {**load, "after": os.getloadavg(), "cores": os.cpu_count()}}


def _record(found: dict, timing: dict) -> dict:
    import bench_arms
    from bench_cells import Testbed

    from fe_posttrain.training.run import library_versions

    return {
        "comparisons": found,
        "meaning": MEANING,
        "settings": {
            "device": "cuda" if bench_arms.GPU else "cpu",
            "time": vars(Testbed()) | timing,
            "peak": vars(Testbed(**PEAK)),
        },
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


if __name__ == "__main__":
    print(json.dumps(peak_memory(sys.argv[1])))

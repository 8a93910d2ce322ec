#!/usr/bin/env python3
"""What a step costs: against TRL's trainers on the same model, data and batch, and by parts of our own.

    scripts/bench.py                          whole runs on the testbed against GRPO-, RLOO- and SFTTrainer: time and
                                              peak memory, about 4 minutes; `--only rloo` for one of them
    scripts/bench.py --matrix                 where we are to be faster and by how much: prompts, lengths, groups and
                                              demonstrations on random models, each figure beside its bar, about 11
                                              minutes; `--only a c` for some cells
    scripts/bench.py --scaling                one of prompt, completion, group, batch, model, vocabulary moved at a time
    scripts/bench.py --gpu                    models of the size of Qwen3-0.6B and 1.7B in bf16, on one GPU
    scripts/bench.py --support                what tracking of support costs a step and a run, about 2 minutes
    scripts/bench.py --logging                what records, shows and mirrors a run, CPU time a step, about 1 minute
    scripts/bench.py --matrix --json result.json       and keep the record

Arms alternate in one process with one thread, and intervals are of the median of their paired ratios. On the testbed
a ratio is ours over TRL's; the matrix says how many times as fast we are. What every figure means is in the record.
"""

import argparse
import json
import logging
import warnings
from pathlib import Path

from rich.console import Console

from fe_posttrain.whole_files import write_whole

KINDS = ("matrix", "scaling", "gpu", "support", "logging")


def cells_of(words, parser: argparse.ArgumentParser) -> dict:
    """The cells that were asked for."""
    import bench_cells

    if words.kind == "gpu" and not bench_cells.GPU:
        parser.error("--gpu: torch finds no GPU here; the other cells run on a CPU")
    all_cells = {"matrix": bench_cells.MATRIX, "scaling": bench_cells.SCALING, "gpu": bench_cells.GPU_CELLS}[words.kind]
    return {name: all_cells[name] for name in chosen(words.only, all_cells, parser)}


def chosen(only: list[str] | None, known: dict, parser: argparse.ArgumentParser) -> list[str]:
    """The names of `only`, or all that are known."""
    if unknown := set(only or ()) - set(known):
        parser.error(f"--only: {', '.join(sorted(unknown))}; unknown; write some of {', '.join(known)}")
    return only or list(known)


def run(words, parser: argparse.ArgumentParser, console: Console) -> dict:
    """Measure and show what was asked for."""
    if words.kind in ("support", "logging"):
        module = __import__(f"bench_{words.kind}")
        with console.status(f"runs with {words.kind}"):
            record = module.measure()
        module.show(record, console)
        return record
    if words.kind is None:
        import bench_testbed

        keys = chosen(words.only, bench_testbed.COMPARISONS, parser)
        record = bench_testbed.measure(keys, words.pairs or 7, words.steps, console)
        console.print(bench_testbed.table(record))
    else:
        import bench_matrix

        record = bench_matrix.measure(cells_of(words, parser), words.pairs or 5, console)
        console.print(bench_matrix.table(record))
    load = record["load"]
    ends = f"{load['before'][0]:.1f} before, {load['after'][0]:.1f} after"
    console.print(f"load of the machine {ends}, {load['cores']} cores", style="dim")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_mutually_exclusive_group()
    helps = {
        "matrix": "cells with bars, on random models and the testbed",
        "scaling": "one factor at a time",
        "gpu": "large models, on a GPU",
        "support": "ledger, displacement and probes",
        "logging": "what records, shows and mirrors a run",
    }
    for kind in KINDS:
        kinds.add_argument(f"--{kind}", action="store_const", dest="kind", const=kind, help=helps[kind])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some comparisons (grpo rloo sft) or cells (a b ...)")
    parser.add_argument("--pairs", type=int, help="runs of each arm; default 7 on the testbed, 5 a cell")
    parser.add_argument("--steps", type=int, default=40, help="testbed: steps of a timed run, a fifth not counted")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    words = parser.parse_args()
    if (words.pairs is not None and words.pairs < 1) or words.steps < 2:
        parser.error("--pairs is at least 1 and --steps at least 2")
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("fe_posttrain").setLevel(logging.ERROR)  # what `estimator: trl` does to the optimum is known
    record = run(words, parser, Console())
    if words.json:
        write_whole(words.json, json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

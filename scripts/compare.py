#!/usr/bin/env python3
"""Compare methods: run every arm of a comparison with every seed, then say what differs and what may be concluded.

    scripts/compare.py --config recipes/comparisons/beyond.yaml --output_dir runs/beyond
    scripts/compare.py --config ... --print      the commands instead, one a line, for a cluster
    scripts/compare.py --config ... --report     tables and figures of the runs that are there

The same command again goes on where it stopped: finished runs stay, the one that was cut short is resumed.
fe_posttrain/recipe/comparison.py shows the YAML. OUTPUT_DIR gets ARM/seed-N (a run folder), ARM/seed-N.log,
comparison.md, comparison.json and figures/.

Exit codes: 0 done; 2 the comparison cannot be run, and one list says why; else that of the run that failed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("train.py")
CANNOT = 2


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/compare.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="the comparison")
    parser.add_argument("--output_dir", metavar="FOLDER", help="where everything is written; default runs/NAME")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--print", action="store_true", help="print the commands of unfinished runs, run nothing")
    action.add_argument("--report", action="store_true", help="run nothing, write tables and figures anew")
    words = parser.parse_args()

    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")

    from fe_posttrain.recipe.comparison import read_comparison
    from fe_posttrain.recipe.reading import RecipeError

    try:
        comparison = read_comparison(words.config, with_recipes=not words.report)
        output_dir = words.output_dir or f"runs/{comparison.name}"
        if words.report:
            return _report(comparison, output_dir)
        return _run(comparison, output_dir, only_print=words.print)
    except RecipeError as error:
        print(f"The comparison cannot be run:\n{error}", file=sys.stderr)
    except ValueError as error:
        print(error, file=sys.stderr)
    return CANNOT


def _run(comparison, output_dir: str, *, only_print: bool) -> int:
    from rich.console import Console

    from fe_posttrain.recipe.comparing import RunFailed, print_commands, run_all

    script = os.path.relpath(SCRIPT)
    if only_print:
        print_commands(comparison, output_dir, script)
        return 0
    try:
        run_all(comparison, output_dir, script, Console())
    except RunFailed as failed:
        print(failed, file=sys.stderr)
        return failed.code
    return _report(comparison, output_dir)


def _report(comparison, output_dir: str) -> int:
    """Read the finished runs, show what they found, and write it."""
    from rich.console import Console

    from fe_posttrain.methods.measured import measured
    from fe_posttrain.methods.results import ArmRuns, results
    from fe_posttrain.recipe.tuning import trials
    from fe_posttrain.view.arms import markdown, show
    from fe_posttrain.view.page.arms import pictures
    from fe_posttrain.view.reading import RunData
    from fe_posttrain.whole_files import write_whole

    finished = {}
    for run in comparison.runs(output_dir):
        if (Path(run.folder) / "summary.json").is_file():
            finished.setdefault(run.arm.label, {})[run.seed] = measured(RunData(Path(run.folder)))
    arms = [ArmRuns(arm.label, arm.role, finished.get(arm.label, {})) for arm in comparison.arms]
    found = results(
        arms,
        name=comparison.name,
        seeds=comparison.seeds,
        baseline=comparison.baseline,
        match=comparison.match,
        tuning={"seed": comparison.tuning_seed, "arms": trials(comparison, output_dir)} if comparison.tune else None,
    )
    out = Path(output_dir)
    (out / "figures").mkdir(exist_ok=True)
    drawn = {}
    for name, title, text in pictures(found):
        write_whole(out / "figures" / f"{name}.svg", text)
        drawn[title] = f"figures/{name}.svg"
    write_whole(out / "comparison.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    write_whole(out / "comparison.md", markdown(found, drawn))
    console = Console()
    show(console, found)
    console.print(f"\nwritten: {out}/comparison.md, comparison.json, figures/", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

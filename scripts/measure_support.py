#!/usr/bin/env python3
"""Where did a gain come from: was it within the reference's reach, or not?

    scripts/measure_support.py --reference-counts A.csv --trained-counts B.csv --budget 64 --json OUT.json

Two files with the columns prompt_id,correct,drawn (and, if you like, family): how often the model before training and
the model after it solved each prompt, and of how many draws. The number of draws must have been fixed beforehand, two
or more a prompt. fe_posttrain/support/README.md explains every number that is printed, and how many draws it takes.

Exit codes: 0 measured; 2 the input cannot be measured, nothing was written; 4 measured and written, and what --fail-on
names is certified (its lower end is above 0). That nothing is certified is no proof of the contrary.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

BAD_INPUT, FAILED_ON = 2, 4


def main() -> int:
    parser = _parser()
    words = parser.parse_args()
    counts = [words.reference_counts, words.trained_counts]
    models = {"--trained": words.trained, "--prompts": words.prompts}
    given = [name for name, value in models.items() if value is not None]
    if any(counts) and given:
        parser.error(f"{', '.join(given)}: models and counts do not mix; keep --reference-counts and --trained-counts")
    if given:  # two models on a prompt file: sampling and grading go here, then the same report
        parser.error(f"{', '.join(given)}: models cannot be sampled here yet; count their draws into two CSV files")
    if not all(counts):
        parser.error("counts of both sides are needed: --reference-counts A.csv --trained-counts B.csv")
    if words.json and not words.json.parent.is_dir():
        parser.error(f"--json: the folder {words.json.parent} does not exist; make it, or write another path")
    try:
        report = _measure_counts(words)
        if words.json:
            _write(words.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        return _refuse(f"{error.filename}: {error.strerror}; write a path that can be opened")
    except ValueError as error:
        return _refuse(str(error))
    return _show(report, words.fail_on)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/measure_support.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --reference-counts A.csv --trained-counts B.csv [--budget B] [--json OUT.json] [options]",
    )
    add = parser.add_argument
    add("--reference-counts", metavar="A.csv", help="hits and draws before training")
    add("--trained-counts", metavar="B.csv", help="hits and draws after training")
    add("--trained", metavar="MODEL", help=argparse.SUPPRESS)
    add("--prompts", metavar="FILE", help=argparse.SUPPRESS)
    add("--budget", type=_whole, default=1024, metavar="B", help="draws that the claims are about (1024)")
    add("--json", type=Path, metavar="OUT.json", help="write the whole report there, in one piece or not at all")
    add("--fail-on", action="append", choices=("created", "lost"), default=[], help="exit with 4 if it is certified")
    add("--alpha", type=_share, default=0.05, help="chance that any one of the certified terms is wrong (.05)")
    add("--delta", type=_share, default=0.05, help="chance at which B draws may miss what counts as in reach (.05)")
    add("--seed", type=int, default=0, help="of splitting the draws of a prompt in halves (0)")
    key = parser.add_argument_group("names in the key that every claim is relative to (default: the files)")
    key.add_argument("--reference", metavar="NAME", help="the model before training")
    key.add_argument("--decoding", metavar="NAME", help="how both sides were drawn")
    key.add_argument("--verifier", metavar="NAME", help="what said that a draw is correct")
    return parser


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text}: draws are counted; write a whole number of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a probability; write a number between 0 and 1")
    return value


def _measure_counts(words: argparse.Namespace) -> dict:
    from fe_posttrain.support.budgets import Key
    from fe_posttrain.support.counts import read_counts
    from fe_posttrain.support.report import report_of_counts

    paths = words.reference_counts, words.trained_counts
    names = [Path(path).name for path in paths]
    before, after = names if names[0] != names[1] else paths
    both = f"of {before} and {after}"
    key = Key(
        reference=words.reference or before,
        decoding=words.decoding or both,
        verifier=words.verifier or both,
        budget=words.budget,
        delta=words.delta,
        alpha=words.alpha,
    )
    return report_of_counts(key, *map(read_counts, paths), words.seed)


def _show(report: dict, fail_on: list[str]) -> int:
    from rich.console import Console

    from fe_posttrain.view.support import show

    show(Console(), report)
    certified = [name for name in fail_on if report["verdict"][name]["low"] > 0]
    if certified:
        print(f"--fail-on: {' and '.join(certified)} certified", file=sys.stderr)
    return FAILED_ON if certified else 0


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return BAD_INPUT


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())

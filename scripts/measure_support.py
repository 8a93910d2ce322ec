#!/usr/bin/env python3
"""Where did a gain come from: was it within the reference's reach, or not?

    scripts/measure_support.py --reference-counts A.csv --trained-counts B.csv --budget 64 --json OUT.json
    scripts/measure_support.py --reference MODEL --trained MODEL --prompts FILE --verifier NAME --json OUT.json

Two files with the columns prompt_id,correct,drawn (and, if you like, family): how often the model before training and
the model after it solved each prompt, and of how many draws. The number of draws must have been fixed beforehand, two
or more a prompt. Or two models, folders or Hub names, and a file of prompts: they are drawn from and judged here, and
what the reference draws is cached. fe_posttrain/support/README.md explains every number that is printed, and how many
draws it takes.

Exit codes: 0 measured; 2 the input cannot be measured, nothing was written; 4 measured and written, and what --fail-on
names is certified (its lower end is above 0). That nothing is certified is no proof of the contrary.
"""

import argparse
import json
import sys
from pathlib import Path

BAD_INPUT, FAILED_ON = 2, 4


def main() -> int:
    parser = _parser()
    words = parser.parse_args()
    counts = [words.reference_counts, words.trained_counts]
    models = {name: getattr(words, name[2:]) for name in ("--trained", "--prompts", "--reference", "--verifier")}
    given = [name for name in ("--trained", "--prompts") if models[name] is not None]
    missing = [name for name, value in models.items() if value is None]
    if any(counts) and given:
        parser.error(f"{', '.join(given)}: models and counts do not mix; keep --reference-counts and --trained-counts")
    if given and missing:
        parser.error(f"{', '.join(missing)}: missing; two models are compared on --prompts FILE by --verifier NAME")
    if not (given or all(counts)):
        parser.error(
            "counts of both sides are needed: --reference-counts A.csv --trained-counts B.csv; or two models: "
            "--reference MODEL --trained MODEL --prompts FILE --verifier NAME"
        )
    if words.json and not words.json.parent.is_dir():
        parser.error(f"--json: the folder {words.json.parent} does not exist; make it, or write another path")
    try:
        report = _measure_models(words) if given else _measure_counts(words)
        if words.json:
            from fe_posttrain.whole_files import write_whole

            write_whole(words.json, json.dumps(report, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        path = f"{error.filename}: {error.strerror}; write a path that can be opened"
        return _refuse(path if error.filename else str(error))
    except ValueError as error:
        return _refuse(str(error).replace("reward_funcs:", "--verifier:"))
    return _show(report, words.fail_on)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/measure_support.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="%(prog)s --reference-counts A.csv --trained-counts B.csv [--budget B] [--json OUT.json] [options]\n"
        "       %(prog)s --reference MODEL --trained MODEL --prompts FILE --verifier NAME [options]",
    )
    add = parser.add_argument
    add("--reference-counts", metavar="A.csv", help="hits and draws before training")
    add("--trained-counts", metavar="B.csv", help="hits and draws after training")
    add("--budget", type=_whole, default=1024, metavar="B", help="draws that the claims are about (1024)")
    add("--json", type=Path, metavar="OUT.json", help="write the whole report there, in one piece or not at all")
    add("--fail-on", action="append", choices=("created", "lost"), default=[], help="exit with 4 if it is certified")
    add("--alpha", type=_share, default=0.05, help="chance that any one of the certified terms is wrong (.05)")
    add("--delta", type=_share, default=0.05, help="chance at which B draws may miss what counts as in reach (.05)")
    add("--seed", type=int, default=0, help="of splitting the draws of a prompt in halves (0)")
    key = parser.add_argument_group("names in the key that every claim is relative to (default: the files)")
    key.add_argument("--reference", metavar="NAME", help="the model before training; with --trained, to be loaded")
    key.add_argument("--decoding", metavar="NAME", help="how both sides were drawn")
    key.add_argument("--verifier", metavar="NAME", help="what says that a draw is correct; with --trained, found")
    two = parser.add_argument_group("two models")
    two.add_argument("--trained", metavar="MODEL", help="the model after training: a folder, or a name of the Hub")
    two.add_argument("--prompts", metavar="FILE", help="rows with a column prompt, as dataset_name of a recipe")
    two.add_argument("--split", default="train", metavar="NAME", help="of the prompts (train)")
    two.add_argument("--rows", type=_whole, default=256, metavar="N", help="the first N prompts (256)")
    two.add_argument("--tag", default="family", metavar="COLUMN", help="give the verdict by this column too (family)")
    two.add_argument("--system-prompt", metavar="TEXT", help="put before every prompt")
    two.add_argument("--threshold", type=float, metavar="X", help="graded verifiers: correct from X on")
    two.add_argument("--draws", type=_whole, default=64, metavar="N", help="completions of each prompt (64)")
    two.add_argument("--reference-draws", type=_whole, default=1024, metavar="N", help="at most (1024)")
    two.add_argument("--max-new-tokens", type=_whole, default=512, metavar="N", help="length of a completion (512)")
    two.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of both (1)")
    two.add_argument("--batch-size", type=_whole, default=64, metavar="N", help="completions drawn at once (64)")
    two.add_argument("--dtype", default="auto", help="of the weights: auto, float32, bfloat16 (auto)")
    two.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a model")
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


def _measure_models(words: argparse.Namespace) -> dict:
    from transformers.utils import logging

    from fe_posttrain.tracking.comparing import Comparison, compare
    from fe_posttrain.training.rewards import find_reward

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    same = ("reference trained prompts threshold split system_prompt rows tag draws reference_draws max_new_tokens "
            "temperature budget delta alpha seed batch_size dtype trust_remote_code").split()  # fmt: skip
    asked = {name: getattr(words, name) for name in same}
    return compare(Comparison(**asked, verifier=find_reward(words.verifier)), lambda line: print(line, flush=True))


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


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The wandb dashboard: chart presets, a workspace of twelve panels, and a report that explains them.

    scripts/dashboard.py                                          print the JSON that wandb would be sent
    scripts/dashboard.py --output DIR                             write it to DIR/workspace.json, DIR/wandb_report.json
    scripts/dashboard.py --entity TEAM --project NAME --push      make them; --run RUN: a report on this run alone

Pushing needs a login (`wandb login`, or WANDB_API_KEY) and makes a new workspace and a new report each time; presets
are made once. The rest needs neither login nor network. Random ids of panels are left out of the JSON.

Exit codes: 0 done; 2 not done, one line says what, why and what to write.
"""

import argparse
import json
import os
import sys
from pathlib import Path

REFUSED = 2


def main() -> int:
    words = _parser().parse_args()
    if words.push and not words.entity:
        return _refuse("--entity: missing; presets, workspace and report belong to a user or team; write --entity TEAM")
    if words.push and words.output:
        return _refuse("--output: it writes what --push would send; the two do not mix; leave one out")
    if words.output and not words.output.is_dir():
        return _refuse(f"--output: the folder {words.output} does not exist; make it, or write another path")
    try:
        import wandb_workspaces  # noqa: F401
    except ModuleNotFoundError:
        return _refuse(
            "wandb-workspaces: not installed; workspace and report are made with it; "
            "pip install 'fe_posttrain[dashboard]'"
        )
    return _push(words) if words.push else _serialise(words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/dashboard.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--entity", metavar="TEAM", help="user or team that owns the project; without --push: ENTITY stands for it")
    add("--project", metavar="NAME", default="fe_posttrain", help="wandb project of the runs (fe_posttrain)")
    add("--run", metavar="RUN", help="report on the run of this name alone; otherwise on all runs, arms side by side")
    add("--push", action="store_true", help="send presets, workspace and report to wandb")
    add("--output", type=Path, metavar="DIR", help="write the JSON there instead of printing it")
    return parser


def _serialise(words: argparse.Namespace) -> int:
    from fe_posttrain.view.board.report import report
    from fe_posttrain.view.board.workspace import serialised, workspace
    from fe_posttrain.whole_files import write_whole

    entity = words.entity or "ENTITY"
    made = {
        "workspace": serialised(workspace(entity, words.project)),
        "wandb_report": serialised(report(entity, words.project, words.run)),
    }
    if words.output is None:
        print(json.dumps(made, indent=2))
        return 0
    try:
        for name, content in made.items():
            path = words.output / f"{name}.json"
            write_whole(path, json.dumps(content, indent=1) + "\n")
            print(path)
    except OSError as error:
        return _refuse(f"--output: {error.filename}: {error.strerror}; write a folder that can be written to")
    return 0


def _push(words: argparse.Namespace) -> int:
    os.environ.setdefault("WANDB_SILENT", "true")  # what there is to say is said here
    from fe_posttrain.view.board.push import NotPushed, push
    from fe_posttrain.view.board.server import PATIENCE, answers, logged_in, server

    if not logged_in():
        return _refuse(
            "--push: no login to wandb on this machine; a dashboard is made in an account; "
            "run `wandb login`, or set WANDB_API_KEY"
        )
    if not answers(server()):
        return _refuse(f"--push: {server()} says nothing within {PATIENCE} s; nothing was pushed; look at the network")
    try:
        push(words.entity, words.project, words.run, print)
    except NotPushed as error:
        return _refuse(f"--push: {error}")
    return 0


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())

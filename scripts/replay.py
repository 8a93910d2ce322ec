#!/usr/bin/env python3
"""Make a wandb run anew from a run folder, whole: rows, charts, tables, recipe, verdict.

    scripts/replay.py runs/mine                      an offline run in runs/mine/wandb
    scripts/replay.py runs/mine --online             uploaded at once; needs `wandb login`
    wandb leet runs/mine/wandb/offline-run-*         look at it in a terminal
    wandb sync runs/mine/wandb/offline-run-*         upload it

The run folder is the truth and wandb its mirror, so this works for runs that were killed, that had no wandb, or whose
wandb died. The run keeps the id that it had. Earlier offline runs
in the folder are moved to wandb/superseded.

Exit codes: 0 done, 2 no run folder, or no server with --online.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("WANDB_SILENT", "true")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the output_dir of a run")
    parser.add_argument("--online", action="store_true", help="upload it to the wandb server")
    words = parser.parse_args()

    from fe_posttrain.view.board.replay import NotOnline, replay

    try:
        replayed = replay(words.run, online=words.online)
    except (ValueError, NotOnline) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{replayed.rows} rows, {replayed.events} events, id {replayed.id}: {replayed.place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

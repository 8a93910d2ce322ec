#!/usr/bin/env python3
"""One page that tells what a run did: report.html, from the run folder alone, in mid-run as well as years later.

    scripts/report.py RUN                       writes RUN/report.html
    scripts/report.py RUN --output FILE.html    writes it elsewhere
    scripts/report.py RUN RUN ... [--output FILE.html]   compares runs; writes comparison.html where you are

The page holds everything that it shows; it opens without a network. Training writes the same page into its run folder.
Exit codes: 0 written; 2 not, and one line says why.
"""

import argparse
import sys
from pathlib import Path

BAD_INPUT = 2


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder: the output_dir of a run")
    parser.add_argument("--output", type=Path, metavar="FILE.html", help="where to write the page")
    words = parser.parse_args()
    if words.output is not None and words.output.is_dir():
        parser.error(f"--output: {words.output} is a folder; the page is one file; write a name in it")
    if words.output is not None and not words.output.parent.is_dir():
        parser.error(f"--output: the folder {words.output.parent} does not exist; make it, or write another path")
    try:
        print(_write(words.runs, words.output))
    except OSError as error:
        return _refuse(f"{error.filename or words.output}: {error.strerror}; write a path that can be opened")
    except ValueError as error:
        return _refuse(str(error))
    return 0


def _write(runs: list[Path], output: Path | None) -> Path:
    from fe_posttrain.view.page.comparison import write_comparison
    from fe_posttrain.view.page.report import write_report

    if len(runs) > 1:
        return write_comparison(runs, output or Path("comparison.html"))
    return write_report(runs[0], output)


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())

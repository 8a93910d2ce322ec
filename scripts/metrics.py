#!/usr/bin/env python3
"""Write the tables of logged metrics into the documents that hold them, from the catalogue.

scripts/metrics.py              make the tables anew
scripts/metrics.py --check      exit with 1 and name the documents whose tables are not the catalogue's
"""

import argparse
import sys
from pathlib import Path

from fe_posttrain.view.catalogue import filled

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "fe_posttrain/support/README.md", "fe_posttrain/view/README.md")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    words = parser.parse_args()
    stale = []
    for path in map(ROOT.joinpath, DOCUMENTS):
        text = path.read_text()
        if filled(text) == text:
            continue
        stale.append(path)
        if not words.check:
            path.write_text(filled(text))
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'its tables are not the catalogue' if words.check else 'written'}")
    return int(words.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

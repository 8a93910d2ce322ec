#!/usr/bin/env python3
"""Write the table of named methods into recipes/README.md, from the presets.

scripts/methods.py              make the table anew
scripts/methods.py --check      exit with 1 if it is not that of the presets
"""

import argparse
import sys
from pathlib import Path

from fe_posttrain.methods.table import filled

DOCUMENT = Path(__file__).resolve().parents[1] / "recipes" / "README.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing")
    words = parser.parse_args()
    text = DOCUMENT.read_text()
    stale = filled(text) != text
    if stale and not words.check:
        DOCUMENT.write_text(filled(text))
    if stale:
        print(f"recipes/README.md: {'its table is not that of the presets' if words.check else 'written'}")
    return int(words.check and stale)


if __name__ == "__main__":
    sys.exit(main())

"""Finished runs made by hand are those of the methods room's tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "methods"))

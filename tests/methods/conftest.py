"""The small model and the arithmetic of the training room's tests are these tests' too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "training"))

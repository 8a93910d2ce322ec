"""The plan of the house: imports run downwards, trl is imported in one room, importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fe_posttrain"
MAY_IMPORT = {
    "theory": set(),
    "support": set(),
    "sequences": set(),
    "whole_files": set(),
    "view": set(),
    "tasks": {"theory", "sequences"},
    "training": {"theory", "sequences", "tasks"},
    "tracking": {"support", "sequences", "tasks", "training"},
    "methods": {"support", "sequences", "tasks", "theory", "training", "tracking"},
    "recipe": {"methods", "support", "tracking", "theory", "sequences", "tasks", "training", "view"},
}
STANDARD = sys.stdlib_module_names
FILES = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    own = room(path)
    names = imported(path)
    rooms = {name.split(".")[1] for name in names if name.startswith("fe_posttrain.")} - {own}
    if own in ("training", "tracking"):
        names_of_view = {name for name in names if name.startswith("fe_posttrain.view")}
        assert all(name.startswith("fe_posttrain.view.catalogue") for name in names_of_view)
        rooms -= {"view"}
    rooms -= {"whole_files"}
    assert rooms <= MAY_IMPORT[own]
    if own != "training":
        assert not any(name.split(".")[0] == "trl" for name in names)
    if own == "theory":
        assert {name.split(".")[0] for name in names} <= {
            "torch",
            "math",
            "collections",
            "dataclasses",
            "typing",
            "fe_posttrain",
        }
    if own == "support":
        assert {name.split(".")[0] for name in names} <= {"numpy", "scipy", "arviz_stats", "fe_posttrain"} | STANDARD


def test_importing_the_package_imports_no_library():
    code = "import sys, fe_posttrain; print(sorted({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_readme_names_files_that_exist():
    words = (ROOT / "README.md").read_text().replace("`", " ").replace("(", " ").replace(")", " ").split()
    paths = {w.rstrip(".,;:") for w in words if w.startswith(("fe_posttrain/", "scripts/", "tests/", "recipes/"))}
    assert len(paths) > 10
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []

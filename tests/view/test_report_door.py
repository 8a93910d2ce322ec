"""The door scripts/report.py: where it writes, and how it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import a_run

DOOR = Path(__file__).parents[2] / "scripts" / "report.py"


def called(*words: str | Path, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(DOOR), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


def test_one_run_is_reported_in_its_folder_and_several_are_compared(tmp_path):
    runs = [a_run(tmp_path / name) for name in ("first", "second")]
    done = called(runs[0], folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == runs[0] / "report.html"
    assert "<title>first: run report</title>" in (runs[0] / "report.html").read_text()
    assert called(*runs, folder=tmp_path).returncode == 0
    assert "2</data> runs compared" in (tmp_path / "comparison.html").read_text()
    assert called(runs[1], "--output", "there.html", folder=tmp_path).returncode == 0
    assert "<title>second: run report</title>" in (tmp_path / "there.html").read_text()
    assert not (runs[1] / "report.html").exists()


@pytest.mark.parametrize(
    "words, told",
    [
        (["."], "no run folder (recipe.yaml is missing); name the output_dir of a run"),
        ([".", "--output", "none/page.html"], "the folder none does not exist; make it, or write another path"),
        ([".", "--output", "."], "is a folder; the page is one file; write a name in it"),
        ([*"12345678"], "8 runs: 7 colours can be told apart; name 7 runs or fewer"),
        ([], "RUN"),
    ],
)
def test_what_cannot_be_reported_is_refused_in_a_line(tmp_path, words, told):
    done = called(*words, folder=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_page_costs_little_and_no_large_library(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fe_posttrain.view.page.report import write_report; "
        f"write_report(Path({str(a_run(tmp_path / 'run'))!r})); "
        "print(sorted({'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)), time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, seconds = done.stdout.rsplit(maxsplit=1)
    assert modules == "[]"
    assert float(seconds) < 5

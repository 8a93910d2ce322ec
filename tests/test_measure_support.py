"""The door to support measurements: as a process where that is the point, in this process elsewhere."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "measure_support.py"
DATA = ROOT / "tests" / "support" / "data"
COUNTS = ["--reference-counts", str(DATA / "before.csv"), "--trained-counts", str(DATA / "after.csv")]

# The script in a fresh interpreter that then says, on the last line of stderr, what it cost.
WATCHED = """
import os, resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as left:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{used.ru_utime + used.ru_stime} {'torch' in sys.modules}", file=sys.stderr)
    sys.exit(left.code)
"""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("measure_support", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def measured(script, monkeypatch, capsys):
    """Exit code, stdout and stderr of the script with these words."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["measure_support.py", *map(str, words)])
        try:
            code = script.main()
        except SystemExit as left:
            code = left.code
        return code, *capsys.readouterr()

    return run


def test_the_process_prints_what_the_readme_shows_and_writes_the_json(tmp_path):
    names = ["--reference", "base", "--decoding", "temperature 1", "--verifier", "exact match"]
    words = [*COUNTS, "--budget", "64", "--json", tmp_path / "out.json", "--fail-on", "created", *names]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 4, done.stderr
    said, cost = done.stderr.splitlines()
    assert said == "--fail-on: created certified"
    seconds, torch_imported = cost.split()
    assert torch_imported == "False"
    assert float(seconds) < 2.0
    readme = (ROOT / "fe_posttrain" / "support" / "README.md").read_text()
    assert "\n".join(line.rstrip() for line in done.stdout.splitlines()) in readme
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["verdict"]["created"]["low"] > 20
    assert {"budget": 64, "share": pytest.approx(0.458, abs=1e-3)} in report["attribution"]
    assert set(report["families"]) == {"arithmetic", "format", "proof"}
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_measured_without_a_condition_is_0_and_the_key_names_the_files(measured, tmp_path):
    code, out, err = measured(*COUNTS, "--budget", 100, "--alpha", 0.1, "--json", tmp_path / "o.json")
    assert (code, err) == (0, "")
    report = json.loads((tmp_path / "o.json").read_text())
    assert report["key"] == {
        "reference": "before.csv",
        "decoding": "of before.csv and after.csv",
        "verifier": "of before.csv and after.csv",
        "budget": 100,
        "delta": 0.05,
        "alpha": 0.1,
    }
    assert [row["budget"] for row in report["attribution"]] == [4, 16, 64, 100, 256, 1024, 4096]
    assert " ".join(out.split()).endswith(report["sentence"])


def test_a_condition_that_is_not_certified_is_0(measured):
    same = [COUNTS[0], COUNTS[1], "--trained-counts", COUNTS[1]]
    code, out, _ = measured(*same, "--fail-on", "created", "--fail-on", "lost")
    assert code == 0
    assert "may be chance" in out


REFUSED = {
    "nothing": ([], "counts of both sides are needed"),
    "one side": (COUNTS[:2], "counts of both sides are needed"),
    "counts and models": ([*COUNTS, "--prompts", "p.jsonl"], "--prompts: models and counts do not mix"),
    "counts and a model": ([*COUNTS, "--trained", "m"], "--trained: models and counts do not mix"),
    "no such file": ([*COUNTS[:3], "nowhere.csv"], "nowhere.csv: No such file or directory"),
    "budget 0": ([*COUNTS, "--budget", "0"], "--budget: 0: draws are counted"),
    "alpha 5": ([*COUNTS, "--alpha", "5"], "--alpha: 5: a probability"),
    "no folder": ([*COUNTS, "--json", "nowhere/o.json"], "--json: the folder nowhere does not exist"),
    "half a word": ([*COUNTS, "--budg", "4"], "unrecognized arguments: --budg 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_line(case, measured):
    words, expected = REFUSED[case]
    code, out, err = measured(*words)
    assert (code, out) == (2, "")
    assert expected in err.splitlines()[-1]


def test_bad_counts_are_one_line_and_leave_the_old_report_alone(measured, tmp_path):
    bad, kept = tmp_path / "bad.csv", tmp_path / "o.json"
    bad.write_text("prompt_id,correct,drawn\na,5,4\n")
    kept.write_text("old")
    code, out, err = measured(*COUNTS[:2], "--trained-counts", bad, "--json", kept)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"{bad}, line 2: 5 correct of 4 drawn; of n draws n can be correct at most; mend the row"
    ]
    assert kept.read_text() == "old"

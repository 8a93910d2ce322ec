"""The door of comparisons: two arms through real launches, and what is left and shown."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SMALL = {
    "max_steps": 4,
    "support_steps": 2,
    "support_draws": 16,
    "support_reference_draws": 64,
    "support_displacement_steps": 0,
    "probe_rows": 4,
    "prompt_rows": 64,
    "learning_rate": 1e-3,
    "report_to": "none",
}


def compare(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "scripts/compare.py", *words],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The comparison's file, its folder, and what the first call said."""
    place = tmp_path_factory.mktemp("comparison")
    content = {
        "name": "small",
        "seeds": [0],
        "base": "recipes/quickstart.yaml",
        "settings": SMALL,
        "arms": {"quiet": {"settings": {"learning_rate": 0.0}, "role": "negative"}, "rl": {}},
        "budget": 64,
        "launch": "python",
    }
    (place / "small.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    words = ["--config", str(place / "small.yaml"), "--output_dir", str(place / "out")]
    return words, place / "out", compare(*words)


def test_all_runs_are_made_and_compared(ran):
    _, out, done = ran
    assert done.returncode == 0, done.stderr + done.stdout
    assert "[2/2] rl seed 0: finished in" in done.stdout and "Traceback" not in done.stderr
    for name in ("quiet/seed-0", "rl/seed-0"):
        recipe = yaml.safe_load((out / name / "recipe.yaml").read_text())
        assert recipe["wandb_run_group"] == "small" and recipe["wandb_job_type"] == name.split("/")[0]
        assert recipe["seed"] == int(name[-1]) and recipe["support_budget"] == 64
    found = json.loads((out / "comparison.json").read_text())
    quiet, rl = (found["arms"][label]["mean"] for label in ("quiet", "rl"))
    assert quiet["kl"] == pytest.approx(0, abs=1e-6) and rl["kl"] > 1e-3
    # 4 steps of 64 completions, each judged once and trained on once at most
    assert rl["verifier_calls"] == 256 and rl["updates"] == 4 and rl["demonstrations"] == 0
    assert 256 <= rl["generated_tokens"] <= 256 * 12 and 0 < rl["gradient_tokens"] <= rl["generated_tokens"]
    assert found["pairs"]["rl"]["generated"]["differences"]["verifier_calls"] == 0.0
    assert found["budgets"] == [64] and found["k"] == 16 and found["arms"]["rl"]["seeds"] == [0]
    # The table's numbers are those of the runs' own last probe.
    report = json.loads((out / "rl/seed-0/summary.json").read_text())["support"]
    points = report["points"]
    rates = [c / n for c, n in zip(points["correct"]["trained"], points["drawn"]["trained"], strict=True)]
    assert found["arms"]["rl"]["runs"]["0"]["pass_1"] == pytest.approx(sum(rates) / len(rates))
    screened = points["screened"]
    before = [c / n for c, n in zip(screened["correct"], screened["drawn"], strict=True)]
    gain = 100 * (sum(rates) - sum(before)) / len(rates)
    assert report["verdict"]["gain"]["value"] == pytest.approx(gain)
    assert [step for step, *_ in found["arms"]["rl"]["rounds"]["0"]] == [0, 2, 4]
    assert found["pairs"]["rl"]["kl"]["why"] == "no common KL"
    assert len(found["verdicts"]["rl"]["conditions"]) == 6


def test_the_screen_fits_and_says_what_is_not_meaningful(ran):
    _, out, done = ran
    assert "…" not in done.stdout
    assert "1 common seed: intervals over fewer than 3 seeds are not meaningful." in done.stdout
    assert "rl: " in done.stdout and "at B = 64" in done.stdout
    text = (out / "comparison.md").read_text()
    for path in sorted((out / "figures").iterdir()):
        assert f"figures/{path.name}" in text and path.read_text().startswith("<svg")
    assert len(list((out / "figures").iterdir())) == 3


def test_the_second_call_starts_nothing_and_finds_the_same(ran):
    words, out, _ = ran
    before = (out / "comparison.json").read_bytes()
    times = {path: path.stat().st_mtime_ns for path in out.glob("*/*/summary.json")}
    done = compare(*words)
    assert done.returncode == 0 and done.stdout.count("finished before") == 2
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/summary.json")} == times
    assert (out / "comparison.json").read_bytes() == before


def test_the_report_alone_starts_nothing_and_checks_no_recipe(ran):
    words, out, _ = ran
    (out / "comparison.md").unlink()
    done = compare(*words, "--report")
    assert done.returncode == 0 and (out / "comparison.md").is_file() and "[1/2]" not in done.stdout
    done = compare("--config", words[1], "--output_dir", str(out / "empty"), "--report")
    assert done.returncode == 2 and "small: no run is finished" in done.stderr


def test_refusals_have_no_traceback(tmp_path):
    (tmp_path / "bad.yaml").write_text("name: x\n")
    done = compare("--config", str(tmp_path / "bad.yaml"))
    assert done.returncode == 2 and "seeds: missing" in done.stderr and "Traceback" not in done.stderr
    done = compare("--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2 and "none.yaml" in done.stderr and "Traceback" not in done.stderr

"""Tables and charts for wandb: rows counted by hand, specs that ask for no other fields, arrival in an offline run."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import wandb

from fe_posttrain.view.board.charts import (
    ATTRIBUTION,
    CHARTS,
    REGIME_FLOW,
    SAMPLES,
    attribution,
    board_objects,
    of_some_prompts,
    regime_flow,
    samples,
)

ROOT = Path(__file__).parents[2]
REGIMES = ["basin", "tail", "barrier", "out", "singular", "undetermined"]  # of fe_posttrain/support/README.md, in order
REPORT = {
    "key": {"budget": 64},
    "attribution": [{"budget": 4, "share": 0.25}, {"budget": 16, "share": 0.5}, {"budget": 64, "share": 0.75}],
    "b50": 16,
    "b50_above": None,
    "points": {
        "regime": {
            "reference": ["basin", "tail", "out", "out", "tail", "undetermined", "basin", "out"],
            "trained": ["basin", "basin", "basin", "undetermined", "basin", "tail", "tail", "basin"],
        }
    },
}
COMPLETIONS = [
    {"model": "policy", "prompt": "R12", "family": "basin", "completion": "21", "correct": True, "energy": -1.0,
     "log_ratio": 0.5, "regime": "basin"},
    {"model": "policy", "prompt": "U12", "completion": "1", "energy": 0.0, "log_ratio": None},
]  # fmt: skip


def test_the_flow_counts_prompts_from_regime_to_regime():
    columns, rows = regime_flow(REPORT, 40)
    assert columns == ("step", "reference", "trained", "prompts", "change")
    assert rows == [
        (40, "basin", "basin", 1, "same"),
        (40, "basin", "tail", 1, "farther"),
        (40, "tail", "basin", 2, "nearer"),
        (40, "out", "basin", 2, "nearer"),
        (40, "out", "undetermined", 1, "undetermined"),
        (40, "undetermined", "tail", 1, "undetermined"),
    ]


@pytest.mark.parametrize(
    "before, now, change",
    [("barrier", "tail", "nearer"), ("out", "barrier", "nearer"), ("tail", "out", "farther"),
     ("singular", "singular", "same"), ("undetermined", "undetermined", "undetermined")],
)  # fmt: skip
def test_nearer_is_an_easier_regime(before, now, change):
    report = {"points": {"regime": {"reference": [before], "trained": [now]}}}
    assert regime_flow(report, 0)[1] == [(0, before, now, 1, change)]


def test_attribution_has_a_row_a_budget_and_marks_the_declared_one():
    columns, rows = attribution(REPORT, 40)
    assert columns == ("step", "budget", "share", "declared", "b50", "half")
    assert rows == [
        (40, 4, 0.25, False, 16, "half at B = 16"),
        (40, 16, 0.5, False, 16, "half at B = 16"),
        (40, 64, 0.75, True, 16, "half at B = 16"),
    ]


@pytest.mark.parametrize("above, words", [(1048576, "half beyond B = 1048576"), (None, "no gain")])
def test_attribution_without_a_half(above, words):
    report = REPORT | {"b50": None, "b50_above": above, "attribution": [{"budget": 4, "share": None}]}
    assert attribution(report, 7)[1] == [(7, 4, None, False, None, words)]


def test_samples_leave_empty_what_a_row_lacks():
    columns, rows = samples([{"step": 3, "event": "rollouts", **COMPLETIONS[1]}])
    assert dict(zip(columns, rows[0], strict=True)) == {
        "step": 3, "event": "rollouts", "model": "policy", "family": None, "prompt": "U12", "completion": "1",
        "correct": None, "energy": 0.0, "log_ratio": None, "regime": None,
    }  # fmt: skip


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_a_spec_asks_for_the_columns_of_its_table_and_for_no_others(chart):
    text = (ROOT / "fe_posttrain/view/board/charts" / chart.file).read_text()
    assert json.loads(text)["data"] == {"name": "wandb"}
    assert set(re.findall(r"\$\{field:(\w+)\}", text)) == set(chart.fields)
    assert set(chart.fields.values()) == {*chart.columns, "name"}
    assert set(re.findall(r"\$\{string:(\w+)\}", text)) == set(chart.strings)
    assert re.fullmatch(r"fe-posttrain-[a-z-]+-[0-9a-f]{8}", chart.preset)


def test_the_flow_draws_every_regime_in_order():
    spec = CHARTS[REGIME_FLOW].spec["spec"]
    for axis in ("x", "y"):
        assert spec["encoding"][axis]["scale"]["domain"] == [*REGIMES, "all"]
    assert spec["layer"][0]["encoding"]["color"]["scale"]["domain"] == ["nearer", "same", "farther", "undetermined"]


def test_the_specs_are_installed_with_the_package():
    (pattern,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "fe_posttrain.view.board"
    ]
    there = {path.name for path in (ROOT / "fe_posttrain/view/board").glob(pattern)}
    assert there == {chart.file for chart in CHARTS.values()}


def offline_run(folder: Path, entity: str) -> tuple[Path, dict]:
    """Log a probe and then rollouts; returns the run's folder and its summary as wandb's own reader sees it."""
    settings = wandb.Settings(console="off", silent=True)
    with wandb.init(mode="offline", dir=str(folder), project="p", settings=settings) as run:
        run.log(board_objects({"step": 40, "event": "probe", "report": REPORT}, COMPLETIONS, entity))
        run.log(board_objects({"step": 60, "event": "rollouts"}, COMPLETIONS[1:], entity))
    (found,) = (folder / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", "--json", str(found)]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    return found, json.loads(shown.stdout)["summary"]


@pytest.mark.parametrize("entity", ["", "team"])
def test_tables_arrive_in_an_offline_run(tmp_path, entity):
    found, summary = offline_run(tmp_path, entity)

    def table(key: str) -> dict:
        return json.loads((found / "files" / summary[key]["path"]).read_text())

    assert table(f"{REGIME_FLOW}_table")["data"][2] == [40, "tail", "basin", 2, "nearer"]
    assert table(f"{ATTRIBUTION}_table")["data"][2] == [40, 64, 0.75, True, 16, "half at B = 16"]
    assert [row[:2] for row in table(SAMPLES)["data"]] == [[60, "rollouts"]]  # the newest
    kept = [json.loads(path.read_text()) for path in (found / "files/media/table").glob("samples_*.json")]
    assert sorted(len(content["data"]) for content in kept) == [1, 2]  # and those before it
    (log,) = found.glob("*.wandb")
    for chart in CHARTS.values():
        assert (f"team/{chart.preset}".encode() in log.read_bytes()) == bool(entity)


def test_an_event_without_report_and_completions_logs_nothing():
    assert board_objects({"step": 1, "event": "checkpoint"}, []) == {}


def test_a_long_table_of_samples_has_all_rows_of_some_prompts():
    rows = [{"prompt": f"x{i}", "model": model} for i in range(300) for model in ("reference", "policy")]
    kept = of_some_prompts(rows)
    # 600 rows for 128: every fifth of 300 prompts, with both its rows
    assert [row["prompt"] for row in kept] == [f"x{i}" for i in range(0, 300, 5) for _ in range(2)]
    assert of_some_prompts(rows[:128]) == rows[:128]

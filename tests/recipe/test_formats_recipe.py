"""The recipe of the base of formats, launched on a base of a few steps."""

import json
from functools import partial
from pathlib import Path

from fe_posttrain.recipe.launch import launch
from fe_posttrain.tasks.bases import BASES
from fe_posttrain.tasks.pretraining_run import PretrainSettings

RECIPE = Path(__file__).parents[2] / "recipes" / "formats.yaml"
BRIEF = PretrainSettings(steps=30, batch_size=64, hidden_size=16, intermediate_size=16, layers=1, heads=2)


def test_formats_are_tracked_as_behaviours(tmp_path, monkeypatch):
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(BASES, "testbed_formats", partial(BASES["testbed_formats"], settings=BRIEF))
    small = {"max_steps": 2, "support_rows": 4, "support_steps": 0, "support_reference_draws": 64, "support_budget": 16}
    words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    folder = launch(str(RECIPE), [*words, "--output_dir", str(tmp_path / "run")])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {key for row in rows for key in row}
    assert {f"support/labels/{name}" for name in ("plain", "marked", "echoed")} <= logged
    assert not any(key.startswith("testbed/") for key in logged)  # exact p is of other families
    assert json.loads((folder / "versions.json").read_text())["tasks"]["formats"] == "1"
    assert "the embedded testbed's base of formats" in (folder / "model" / "README.md").read_text()

"""Workspace and report as wandb would be sent them: golden files, and what a person asks, in order.

After a wanted change: scripts/dashboard.py --output tests/view/data, and read the difference.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fe_posttrain.view import catalogue
from fe_posttrain.view.board import push, report, workspace
from fe_posttrain.view.board.panels import PANELS

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "data"
# What a person asks, in order: one key that the panel must show for it.
ASKED = [
    "train/free_energy/optimum",
    "train/free_energy/demonstration",
    "train/free_energy/beta",
    "train/testbed/p/basin",
    "train/support/created_low",
    "train/support/displacement",
    "charts/regime_flow_table",
    "charts/attribution_table",
    "train/support/ledger_in",
    "train/step_time",
    "samples",
    "train/grad_norm",
]


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def panels() -> list[dict]:
    (section,) = golden("workspace")["spec"]["section"]["panelBankConfig"]["sections"]
    return section["panels"]


def lines(panel: dict) -> list[str]:
    """Keys of a line plot; those of its regular expression with `x` for what a recipe names."""
    config = panel["config"]
    if "metricRegex" not in config:
        return config.get("metrics", [])
    assert config["metrics"] == [] and config["useMetricRegex"]
    return config["metricRegex"].removeprefix("^(").removesuffix(")$").replace(".+", "x").split("|")


def shows(panel: dict, key: str) -> bool:
    config = panel["config"]
    if panel["viewType"] == "Run History Line Plot":
        return key in config["metrics"] or bool(re.search(config.get("metricRegex", "$^"), key))
    return f'"{key}"' in json.dumps(config)


def run_door(*words: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts/dashboard.py"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment
    )


def test_the_door_writes_the_golden_files_byte_for_byte(tmp_path):
    done = run_door("--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in ("workspace", "wandb_report"):
        assert (tmp_path / f"{name}.json").read_text() == (GOLDEN / f"{name}.json").read_text()


def test_at_most_twelve_panels_in_the_order_of_the_questions():
    assert len(panels()) <= 12
    assert [shows(panel, key) for panel, key in zip(panels(), ASKED, strict=True)] == [True] * len(ASKED)


def test_every_line_is_a_metric_of_the_catalogue_and_every_group_is_there():
    names = [key for panel in panels() for key in lines(panel)]
    found = []
    for name in names:
        where, key = name.split("/", 1)
        assert where in ("train", "eval")
        found.append(catalogue.find(key))
    assert None not in found
    assert {metric.group for metric in found} == set(catalogue.GROUPS)


def test_every_line_plot_is_over_the_step_unsmoothed_with_title_and_unit():
    plots = [panel["config"] for panel in panels() if panel["viewType"] == "Run History Line Plot"]
    assert len(plots) == 9
    for config in plots:
        assert config["xAxis"] == "train/global_step"
        assert config["smoothingType"] == "none" and "smoothingWeight" not in config
        assert config["chartTitle"] and config["limit"] == 20
    units = {config["chartTitle"]: config["yAxisTitle"] for config in plots}
    assert units["Free energy and its optimum"] == "energy" and units["Where the gain came from"] == "points"


@pytest.mark.parametrize(
    "key, panel",
    [("train/testbed/p/tail_10", 3), ("eval/reward", 3), ("train/mean_token_accuracy", 3),
     ("train/rewards/mine/faults", 11), ("train/testbed/kl/basin", None), ("train/reward", None),
     ("train/rewards/mine/mean", None), ("eval/support/correct", None)],
)  # fmt: skip
def test_regular_expressions_find_what_recipes_name_and_nothing_beside_it(key, panel):
    assert [i for i, found in enumerate(panels()) if shows(found, key)] == ([] if panel is None else [panel])


def test_runs_are_grouped_by_group_and_job_type():
    section = golden("workspace")["spec"]["section"]
    (runs,) = section["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["group", "jobType"]
    assert "summary:train/support/created_low" in runs["runFeed"]["columnOrder"]
    assert section["settings"]["xAxis"] == "train/global_step" and section["settings"]["maxRuns"] == 20


def test_the_report_introduces_every_panel_with_the_catalogue_and_says_what_the_words_mean():
    blocks = golden("wandb_report")["spec"]["blocks"]
    headings = [i for i, block in enumerate(blocks) if block["type"] == "heading"]
    assert len(headings) == len(ASKED)
    for i, asked, key in zip(headings, PANELS, ASKED, strict=True):
        words, grid = blocks[i + 1], blocks[i + 2]
        assert (words["type"], grid["type"]) == ("markdown-block", "panel-grid")
        shown = grid["metadata"]["panelBankSectionConfig"]["panels"]
        assert shows(shown[0], key)
        for name in asked.metrics:
            assert f"`{name}`" in words["content"] and catalogue.named(name).meaning in words["content"]
    introduction = blocks[1]["content"]
    for word in ("**Elicited**", "**Created**", "**Undetermined**", "no proof of absence", "B draws of the reference"):
        assert word in introduction


def test_a_report_on_one_run_filters_by_its_name_whatever_is_in_it():
    name = """my 'first' "run" """
    made = workspace.serialised(report.report("ENTITY", "p", name))
    for block in made["spec"]["blocks"]:
        if block["type"] == "panel-grid":
            (runs,) = block["metadata"]["runSets"]
            (only,) = runs["filters"]["filters"]
            assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "displayName"}, "=", name)
            assert runs["grouping"] == []


def test_names_reach_every_place_that_needs_them():
    made = json.dumps(workspace.serialised(workspace.workspace("team", "project")))
    assert made.count('"team/fe-posttrain-') == 2 and "ENTITY" not in made


def test_pushing_without_a_login_says_so_in_one_line(tmp_path):
    nothing = {"HOME": str(tmp_path), "WANDB_API_KEY": "", "WANDB_IDENTITY_TOKEN_FILE": "", "NETRC": ""}
    done = run_door("--entity", "team", "--push", **nothing)
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("--push: no login") and "wandb login" in line


@pytest.mark.parametrize(
    "words, said",
    [(["--push"], "--entity: missing"), (["--push", "--entity", "t", "--output", "."], "do not mix"),
     (["--output", "no/such/folder"], "does not exist")],
)  # fmt: skip
def test_the_door_refuses_in_one_line(words, said):
    done = run_door(*words)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_door_names_the_extra_where_it_is_missing(tmp_path):
    (tmp_path / "wandb_workspaces.py").write_text("raise ModuleNotFoundError(name='wandb_workspaces')\n")
    done = run_door(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 2 and "pip install 'fe_posttrain[dashboard]'" in done.stderr


class Server:
    """Stands for wandb: remembers what it was sent; presets may be there already, workspaces may be refused."""

    def __init__(self, monkeypatch, *, presets_there: bool = False, refuses: bool = False):
        self.sent = []

        class Api:
            def create_custom_chart(_, **asked):
                if presets_there:
                    raise RuntimeError("HTTP 409: conflict")
                self.sent.append(asked)
                return f"{asked['entity']}/{asked['name']}"

        def save(made):
            if refuses:
                raise ConnectionError("no route")
            self.sent.append(made)
            return type("Saved", (), {"url": f"https://wandb.example/{type(made).__name__}"})

        monkeypatch.setattr(push.wandb, "Api", Api)
        monkeypatch.setattr(workspace.ws.Workspace, "save", save)
        monkeypatch.setattr(workspace.wr.Report, "save", save)


def test_a_push_sends_presets_then_workspace_then_report(monkeypatch):
    server, said = Server(monkeypatch), []
    push.push("team", "project", None, said.append)
    flow, curve, workspace, report = server.sent
    assert [sent["name"].rsplit("-", 1)[0] for sent in (flow, curve)] == [
        "fe-posttrain-regime-flow",
        "fe-posttrain-attribution",
    ]
    assert flow["spec_type"] == "vega2" and "${field:trained}" in json.dumps(flow["spec"])
    assert (workspace.entity, report.project) == ("team", "project")
    assert said[-1] == "report: https://wandb.example/Report" and len(said) == 4


def test_presets_that_are_there_are_kept(monkeypatch):
    server, said = Server(monkeypatch, presets_there=True), []
    push.push("team", "project", None, said.append)
    assert len(server.sent) == 2 and all(line.endswith("already there") for line in said[:2])


def test_a_step_that_fails_says_what_is_there_already(monkeypatch):
    Server(monkeypatch, refuses=True)
    with pytest.raises(push.NotPushed, match=r"workspace: no route; pushed before: preset .*; see to it"):
        push.push("team", "project", None, lambda line: None)

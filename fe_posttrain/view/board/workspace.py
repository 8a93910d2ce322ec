"""The wandb workspace as code: the panels of `panels`, at one scale, over the steps. Needs `fe_posttrain[dashboard]`.

Arms of an experiment are runs of one wandb group with a job type each: runs are grouped by both, so that every arm
has a line of its own, the mean over its runs with their range. Colours by job type are not to be had from
wandb-workspaces 0.4, which colours a group by the names in it, unknown here; wandb gives every (group, job type) one.

Verified without a server: what is serialised, against golden files (tests/view/data). Not verified: how the app draws
it; that its regular expressions read as Python's; how it groups runs without a group; that a second push of a
workspace or report under the same name makes another one, as wandb-workspaces documents.
"""

from collections.abc import Mapping
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from fe_posttrain.view.board.charts import CHARTS, SAMPLES
from fe_posttrain.view.board.panels import PANELS, Panel
from fe_posttrain.view.catalogue import STEP, in_wandb

NAME = "Free energy and where the gain came from"
MOST_RUNS = 20  # drawn in a panel
_COLUMNS = ("free_energy/total", "support/gain", "support/elicited_low", "support/created_low", "support/lost_low")


def workspace(entity: str, project: str) -> ws.Workspace:
    """A workspace of the project with `board.PANELS`, not saved yet.

    Args:
        entity: user or team that owns the project and the presets of `charts`.
    """
    section = ws.Section(
        name="What the run did",
        panels=[panel(asked, entity) for asked in PANELS],
        is_open=True,
        pinned=True,
        layout_settings=ws.SectionLayoutSettings(columns=3, rows=4),
        panel_settings=ws.SectionPanelSettings(x_axis=STEP, smoothing_type="none"),
    )
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[section],
        settings=ws.WorkspaceSettings(x_axis=STEP, smoothing_type="none", max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group"), ws.Metric("JobType")],
            pinned_columns=["run:displayName", *(f"summary:{in_wandb(name)}" for name in _COLUMNS)],
        ),
    )


def panel(
    asked: Panel, entity: str, layout: wr.Layout | None = None
) -> wr.LinePlot | wr.CustomChart | wr.WeavePanelSummaryTable:
    """The panel of wandb-workspaces: a table, a custom chart, or lines."""
    place = {} if layout is None else {"layout": layout}
    if asked.key == SAMPLES:
        return wr.WeavePanelSummaryTable(table_name=SAMPLES, **place)
    if asked.key:
        chart = CHARTS[asked.key]
        return wr.CustomChart(
            query={"id": {}, "name": {}, "summaryTable": {"tableKey": chart.table_key}},  # as wandb.plot_table asks
            chart_name=f"{entity}/{chart.preset}",
            chart_fields=chart.fields,
            chart_strings=chart.strings,
            **place,
        )
    return lines(asked, **place)


def lines(asked: Panel, **place: Any) -> wr.LinePlot:
    """The metrics of a panel over the steps, as they are: no smoothing, arms as mean and range."""
    pattern = asked.pattern
    return wr.LinePlot(
        title=asked.heading,
        x=STEP,
        y=[] if pattern else list(asked.lines),
        metric_regex=pattern,
        title_x="step",
        title_y=asked.unit,
        log_y=asked.log or None,
        smoothing_type="none",
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=MOST_RUNS,
        **place,
    )


def serialised(made: ws.Workspace | wr.Report) -> dict[str, Any]:
    """What wandb is sent, as JSON values, less the random ids of panels and run sets."""
    model = made._to_model()
    return {
        "entity": made.entity,
        "project": made.project,
        "name": model.display_name,
        "spec": _without_ids(model.spec.model_dump(mode="json", by_alias=True, exclude_none=True)),
    }


def _without_ids(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_ids(part) for key, part in value.items() if key not in ("id", "__id__")}
    return [_without_ids(part) for part in value] if isinstance(value, list) else value

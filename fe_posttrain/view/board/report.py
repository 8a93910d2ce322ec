"""A wandb report that explains a run in words and panels. Needs `fe_posttrain[dashboard]`.

It asks what `board` asks, in that order; what each number means is the catalogue's wording. A run set without entity
and project stands for the report's own project: so the report is made without asking a server.
"""

import wandb_workspaces.reports.v2 as wr

from fe_posttrain.view.board.charts import REGIME_FLOW, SAMPLES
from fe_posttrain.view.board.panels import PANELS, Panel
from fe_posttrain.view.board.workspace import NAME, lines, panel
from fe_posttrain.view.catalogue import Metric

_INTRODUCTION = """\
Training minimised one free energy: energy (the negative reward, and the surprise at demonstrations) plus beta times \
the KL from the reference, the model that training started from. This page shows whether it fell, and then asks where \
the gain came from: was it within the reference's reach, or not?

* **Elicited**: the part of the gain that B draws of the reference, with a verifier that picks the correct one, would \
have shown too. Training made reliable what was there.
* **Created**: the part that B draws of the reference would not have shown.
* **Lost**: what the reference solves more often than the trained model.
* **Undetermined**: what no bound certifies as either. It is a first-class answer and means that the draws did not \
suffice, neither that nothing was created nor that something was. It is the gain less what is certified, and may be \
negative where a loss is not certified.

The lower ends are certified, all three together at level 1 - alpha, for the probe prompts at hand. A lower end of 0 \
is no proof of absence: nothing proves that there was no creation. Every number is relative to its key: reference, \
decoding, verifier, B, delta and alpha; without the key it means nothing. The key stands in the sentence at the end of \
a run's terminal output and in its `summary.json`, beside `created.high`, the most that can have been created.
"""
_COUNTS = Panel(
    "Prompts in each regime, over time",
    "The same counts at every probe round, on both sides.",
    ("support/calls/*",),
)
_WIDTH, _HEIGHT = 24, 10  # of a panel in the report's grid; 24 is the whole width


def report(entity: str, project: str, run_name: str | None = None) -> wr.Report:
    """A report on the runs of a project, not saved yet.

    Args:
        entity: user or team that owns the project and the presets of `charts`.
        run_name: show this run alone, by its display name; otherwise all runs, arms as mean and range.
    """
    blocks: list = [wr.MarkdownBlock(text=_INTRODUCTION), wr.TableOfContents()]
    for asked in PANELS:
        blocks += _section(asked, entity, run_name)
    about = f"run {run_name}" if run_name else f"runs of {project}"
    return wr.Report(
        entity=entity,
        project=project,
        title=f"{NAME}: {about}"[:128],  # the API's limit
        description="One free energy, its optimum, and how far training moved what the model can reach.",
        blocks=blocks,
        width="fluid",
    )


def _section(asked: Panel, entity: str, run_name: str | None) -> list:
    """Heading, words, panel; under the flow of the last probes the counts over time."""
    height = 2 * _HEIGHT if asked.key == SAMPLES else _HEIGHT
    shown = [panel(asked, entity, layout=wr.Layout(w=_WIDTH, h=height))]
    if asked.key == REGIME_FLOW:
        shown.append(lines(_COUNTS, layout=wr.Layout(y=height, w=_WIDTH, h=_HEIGHT)))
    words = "\n".join([asked.says, "", *map(_explained, asked.explained)])
    return [wr.H2(asked.heading), wr.MarkdownBlock(text=words), wr.PanelGrid(runsets=[_runs(run_name)], panels=shown)]


def _explained(metric: Metric) -> str:
    notes = ", ".join(filter(None, (metric.unit, f"wanted: {metric.goal}" if metric.goal else "")))
    return f"* `{metric.name}`{f' ({notes})' if notes else ''}: {metric.meaning}"


def _runs(run_name: str | None) -> wr.Runset:
    if run_name is None:
        return wr.Runset(groupby=["group", "jobType"])
    return wr.Runset(name=run_name, filters=f"Metric('Name') == {run_name!r}")  # parsed as Python: quotes are safe

"""Presets, workspace and report, sent to wandb. Needs a login and `fe_posttrain[dashboard]`.

Not verified, for want of a server: that one which has a preset of that name already says 409 or "already exists".
"""

from collections.abc import Callable

import wandb

from fe_posttrain.view.board.charts import CHARTS, Chart
from fe_posttrain.view.board.report import report
from fe_posttrain.view.board.workspace import workspace


class NotPushed(Exception):
    """A step that wandb refused; the message says which and why, and what is there already."""


def push(entity: str, project: str, run_name: str | None, say: Callable[[str], None]) -> None:
    """Make the presets that are not there yet, then a new workspace and a new report of the project.

    Args:
        run_name: the report shows this run alone.
        say: takes one line for each thing that is there now.

    Raises:
        NotPushed: at the first step that fails.
    """
    steps: dict[str, Callable[[], str]] = {
        f"preset {chart.preset}": lambda chart=chart: _make_preset(entity, chart) for chart in CHARTS.values()
    }
    steps["workspace"] = lambda: workspace(entity, project).save().url
    steps["report"] = lambda: report(entity, project, run_name).save().url
    done: list[str] = []
    for name, step in steps.items():
        try:
            found = step()
        except Exception as error:  # of wandb, its service, the network, the server: all end here, in one line
            there = f"pushed before: {', '.join(done)}" if done else "nothing was pushed"
            raise NotPushed(f"{name}: {_first_line(error)}; {there}; see to it and push again") from error
        done.append(name)
        say(f"{name}: {found}")


def _make_preset(entity: str, chart: Chart) -> str:
    """Where the preset is. Its name holds a hash of its spec, so one that is there is this one."""
    try:
        return wandb.Api().create_custom_chart(
            entity=entity,
            name=chart.preset,
            display_name=chart.title,
            spec_type="vega2",
            access="private",
            spec=chart.spec,
        )
    except Exception as error:
        if "409" in str(error) or "already exists" in str(error).lower():
            return f"{entity}/{chart.preset}, already there"
        raise


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

"""Tables of a support report for wandb, and the Vega-Lite charts that draw them.

Three keys of a wandb run, logged at every event that has them:

    charts/regime_flow    prompts by regime before training and now; drawn by charts/regime_flow.json
    charts/attribution    A(B), the share of the gain that B draws of the reference explain; charts/attribution.json
    samples               completions with energy, ln(pi/ref) and regime

A chart is a *preset* of an entity (a user or team): a spec with `${field:...}` where wandb puts the columns of a
table, which lies under the chart's key with `_table` after it. scripts/dashboard.py makes the presets. Their names end
in a hash of the spec: whoever changes a spec makes a new preset, and old runs keep theirs.

A panel shows the newest table of each run, runs side by side; two runs of one name at the same step are drawn as one.

Tested without a server: tables and chart settings arrive in an offline run. Not verified: how wandb's own renderer
draws the specs, which are Vega-Lite 5.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

REGIMES = ("basin", "tail", "barrier", "out", "singular", "undetermined")  # easy to reach first
REGIME_FLOW = "charts/regime_flow"
ATTRIBUTION = "charts/attribution"
SAMPLES = "samples"
TABLE_ROWS = 128  # wandb looks at every cell: a table of 640 costs a fifth of a second

Table = tuple[tuple[str, ...], list[tuple]]  # columns, rows


@dataclass(frozen=True)
class Chart:
    """A custom chart.

    Args:
        key: under which runs log it.
        title: above it.
        columns: of its table.
        file: its spec, in charts/.
    """

    key: str
    title: str
    columns: tuple[str, ...]
    file: str

    @property
    def table_key(self) -> str:
        """The key of its table, as `wandb.plot_table` makes it."""
        return f"{self.key}_table"

    @property
    def fields(self) -> dict[str, str]:
        """Placeholder of the spec -> column; `name` is that of the run, which wandb adds to the rows."""
        return {column: column for column in self.columns} | {"run": "name"}

    @property
    def strings(self) -> dict[str, str]:
        return {"title": self.title}

    @property
    def spec(self) -> dict[str, Any]:
        """Vega-Lite, with placeholders."""
        return json.loads(files("fe_posttrain.view.board").joinpath("charts", self.file).read_text(encoding="utf-8"))

    @property
    def preset(self) -> str:
        """Name of the preset, without its entity."""
        text = json.dumps(self.spec, sort_keys=True)
        stem = self.file.removesuffix(".json").replace("_", "-")
        return f"fe-posttrain-{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


CHARTS = {
    REGIME_FLOW: Chart(
        REGIME_FLOW,
        "Prompts by regime: before training and now",
        ("step", "reference", "trained", "prompts", "change"),
        "regime_flow.json",
    ),
    ATTRIBUTION: Chart(
        ATTRIBUTION,
        "Share of the gain that B draws of the reference explain (as drawn; no claim)",
        ("step", "budget", "share", "declared", "b50", "half"),
        "attribution.json",
    ),
}
SAMPLE_COLUMNS = (
    "step", "event", "model", "family", "prompt", "completion", "correct", "energy", "log_ratio", "regime",
)  # fmt: skip


def regime_flow(report: Mapping[str, Any], step: int) -> Table:
    """How many probe prompts went from which regime to which; pairs without a prompt have no row.

    `change` is `nearer` or `farther` where the regime now is easier or harder to reach than before, `same`, or
    `undetermined` where either side is.
    """
    regimes = report["points"]["regime"]
    counted = Counter(zip(regimes["reference"], regimes["trained"], strict=True))
    pairs = sorted(counted, key=lambda pair: tuple(map(REGIMES.index, pair)))
    rows = [(step, before, now, counted[before, now], _change(before, now)) for before, now in pairs]
    return CHARTS[REGIME_FLOW].columns, rows


def attribution(report: Mapping[str, Any], step: int) -> Table:
    """A(B), a row a budget; `share` is None without a gain.

    `declared` marks the budget of the verdict; `b50`, the least B with A(B) >= 1/2, and `half`, the same in words,
    are in every row.
    """
    b50, declared = report["b50"], report["key"]["budget"]
    rows = [
        (step, row["budget"], row["share"], row["budget"] == declared, b50, _half(report))
        for row in report["attribution"]
    ]
    return CHARTS[ATTRIBUTION].columns, rows


def samples(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Completions as rows of a run's samples files have them; None for what a row lacks."""
    return SAMPLE_COLUMNS, [tuple(row.get(column) for column in SAMPLE_COLUMNS) for row in rows]


def of_some_prompts(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All completions of as many prompts, evenly spread, as a table of about `TABLE_ROWS` rows holds."""
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    chosen = set(prompts[:: -(-len(rows) // TABLE_ROWS)])
    return [row for row in rows if row["prompt"] in chosen]


def board_objects(
    event: Mapping[str, Any], completions: Sequence[Mapping[str, Any]], entity: str = ""
) -> dict[str, Any]:
    """What to pass to `run.log` for an event; empty where it has neither a report nor completions.

    Args:
        event: a row of events.jsonl: `step`, `event` and, of a probe, `report`.
        completions: its samples.
        entity: the run's (`run.entity`): whose presets draw the charts. Empty, as of an offline run, the tables are
            logged alone, under the same keys; the panels of `workspace` show them all the same.
    """
    import wandb

    def table(content: Table) -> wandb.Table:
        columns, rows = content
        return wandb.Table(columns=list(columns), data=[list(row) for row in rows])

    objects: dict[str, Any] = {}
    if "report" in event:
        made = {
            REGIME_FLOW: table(regime_flow(event["report"], event["step"])),
            ATTRIBUTION: table(attribution(event["report"], event["step"])),
        }
        for key, content in made.items():
            chart = CHARTS[key]
            if entity:
                objects[key] = wandb.plot_table(f"{entity}/{chart.preset}", content, chart.fields, chart.strings)
            else:
                objects[chart.table_key] = content
    if completions:
        when = {"step": event["step"], "event": event["event"]}
        objects[SAMPLES] = table(samples(when | dict(row) for row in of_some_prompts(completions)))
    return objects


def _change(before: str, now: str) -> str:
    if "undetermined" in (before, now):
        return "undetermined"
    moved = REGIMES.index(before) - REGIMES.index(now)
    return "nearer" if moved > 0 else "farther" if moved < 0 else "same"


def _half(report: Mapping[str, Any]) -> str:
    if report["b50"] is not None:
        return f"half at B = {report['b50']}"
    return "no gain" if report["b50_above"] is None else f"half beyond B = {report['b50_above']}"

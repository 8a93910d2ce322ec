"""How each number was computed: the catalogue's words for what the page draws, the key, the recipe, the versions."""

import re
from collections.abc import Mapping
from typing import Any

from fe_posttrain.view import catalogue
from fe_posttrain.view.page.markup import Html, data, folded, section, table, tag, words
from fe_posttrain.view.reading import RunData

_KEY = {
    "reference": "the model that all is relative to",
    "decoding": "how both sides were drawn",
    "verifier": "what says that a completion is correct",
    "budget": "B, draws that claims are about",
    "delta": "chance with which B draws may miss what counts as within reach",
    "alpha": "level of every bound",
}


def explained(run: RunData, page: str) -> Html:
    """The section; `page` is the markup before it, whose figures say which metrics they draw."""
    drawn = sorted(set(re.findall(r'data-key="([^"]+)"', page)))
    metrics = dict.fromkeys(found for key in drawn if (found := catalogue.find(key)) is not None)
    ordered = [metric for metric in catalogue.CATALOGUE if metric in metrics]
    rows = [[tag("code", m.name), m.unit, m.goal, m.source, words(m.meaning)] for m in ordered]
    return section(
        "explained",
        "How each number was computed",
        _key(run.support.get("key")),
        tag("h3", "Metrics on this page"),
        table(["key", "unit", "goal", "logged by", "meaning"], rows, texts=5),
        folded("Recipe, with every default filled in", _pairs(run.recipe)),
        folded("Versions", _pairs(run.versions)),
        tag(
            "p",
            "Made from recipe.yaml, metrics.jsonl, events.jsonl, samples/ and, at the end, summary.json of the run "
            "folder. Each number on this page carries its full value in the page's source.",
            class_="note",
        ),
    )


def _key(key: Mapping[str, Any] | None) -> list[Html] | None:
    if key is None:
        return None
    rows = [
        [name, tag("span", data(value) if isinstance(value, int | float) else str(value)), _KEY.get(name, "")]
        for name, value in key.items()
    ]
    said = "Every statement about support is relative to this key; without it, it means nothing."
    return [tag("h3", "The key"), tag("p", said, class_="lead"), table(["", "", ""], rows, texts=3)]


def _pairs(values: Mapping[str, Any]) -> Html:
    rows = [[tag("code", name), tag("code", str(value))] for name, value in _flat(values)]
    return table(["name", "value"], rows, texts=2)


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        inside = isinstance(value, Mapping) and value
        found += _flat(value, f"{before}{name}.") if inside else [(f"{before}{name}", value)]
    return found

"""The table of named methods in documents, made from the presets."""

import re

import yaml

from fe_posttrain.methods.presets import METHODS, Method

_WEIGHTS = {
    "reward_energy_weight": "reward_energy_schedule",
    "demonstration_energy_weight": "demonstration_energy_schedule",
    "beta": "beta_schedule",
}
_DEMONSTRATIONS = {"none": "", "stream": "rows of their own", "paired": "one with each prompt"}
_MARKED = re.compile(r"(<!-- methods -->).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    """Markdown: a row for each method, with the keys that it stands for."""
    lines = [
        "| `method` | paper | w_r | w_d | beta | other keys | demonstrations | departures |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_row(name, method) for name, method in METHODS.items())])


def filled(text: str) -> str:
    """A document with the table between its marks `<!-- methods -->` and `<!-- end -->` made anew."""
    return _MARKED.sub(lambda found: f"{found[1]}\n{table()}\n{found[2]}", text)


def _row(name: str, method: Method) -> str:
    settings = method.settings
    weights = [_weight(settings[key], settings.get(schedule)) for key, schedule in _WEIGHTS.items()]
    shown = {*_WEIGHTS, *_WEIGHTS.values()}
    others = [f"`{_flow({key: value})}`" for key, value in settings.items() if key not in shown]
    others += [f"asks for `{key}`" for key in method.asks]
    paper = f"[{method.source}](https://arxiv.org/abs/{method.source})" if method.source else ""
    cells = [f"`{name}`: {method.title}", paper, *weights, ", ".join(others), _DEMONSTRATIONS[method.demonstrations]]
    return f"| {' | '.join(cells)} | {len(method.departures) or ''} |"


def _weight(value: float, schedule: dict | None) -> str:
    """`0.1, cosine: initial 1, warmup 0.1, final 0.95`."""
    if schedule is None:
        return f"{value:g}"
    ((kind, arguments),) = schedule.items()
    return f"{value:g}, {kind}: " + ", ".join(f"{word} {number:g}" for word, number in arguments.items())


def _flow(mapping: dict) -> str:
    """A mapping of one line as YAML, without its outer braces."""
    return yaml.safe_dump(mapping, default_flow_style=True, width=float("inf")).strip()[1:-1]

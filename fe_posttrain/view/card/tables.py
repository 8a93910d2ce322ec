"""Tables of a model card that come from the rows of a run: F and its terms, the testbed's exact values, versions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fe_posttrain.view.catalogue import named
from fe_posttrain.view.reading import RunData
from fe_posttrain.view.text import number, probability

_ENERGY = ("total", "optimum", "gap", "reward", "demonstration", "kl", "demonstration_penalty", "beta")
_LABELS = {
    "total": "F",
    "optimum": "F*",
    "gap": "gap, F - F*",
    "kl": "KL",
    "demonstration_penalty": "penalty on demonstrations",
    "beta": "beta",
}
_EVALUATED = {"eval_free_energy/total": "F", "eval_reward": "reward", "eval_loss": "loss"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def energy(run: RunData) -> str:
    """F and its terms: means over the first and the last tenth of the rows, and what evaluation found last."""
    rows = [row for row in run.metrics if row.get("free_energy/total") is not None]
    if not rows:
        return "Nothing was logged yet."
    count = max(1, len(rows) // 10)
    found = []
    for name in _ENERGY:
        key = f"free_energy/{name}"
        ends = [_mean(key, part) for part in (rows[:count], rows[-count:])]
        if None not in ends:
            label = _LABELS.get(name, f"{name} term")
            found.append((label, *map(number, ends), named(key).unit))
    parts = [
        f"Means over the first and the last tenth of {len(rows)} logged steps (1 to {rows[-1]['step']}); undivided.",
        table(("", "first", "last", "unit"), found),
    ]
    if "free_energy/gap" not in run.last():
        parts.append("F* is not known here: it takes p_ref of every prompt, beta > 0 and no demonstrations.")
    return "\n\n".join([*parts, *_evaluation(run)])


def _evaluation(run: RunData) -> list[str]:
    rows = [row for row in run.metrics if any(row.get(key) is not None for key in _EVALUATED)]
    if not rows:
        return []
    values = [f"{label} {number(rows[-1][key])}" for key, label in _EVALUATED.items() if rows[-1].get(key) is not None]
    return [f"Evaluation at step {rows[-1]['step']}: {', '.join(values)}."]


def exact(run: RunData, summary: Mapping[str, Any]) -> str:
    """The testbed's exact values at both ends; empty where there are none."""
    first, last = {}, {}
    for row in run.metrics:
        values = {key: value for key, value in row.items() if key.startswith("testbed/") and value is not None}
        first, last = values | first, last | values
    measured = summary.get("exact") or {}
    first, last = measured.get("start", first), measured.get("end", last)
    families = [key.removeprefix("testbed/p/") for key in first if key.startswith("testbed/p/")]
    if not families:
        return ""
    ends = {part: [f"testbed/{part}/{name}" for name in families] for part in ("kl", "gap")}
    shown = [part for part, keys in ends.items() if measured and all(key in last for key in keys)]
    head = [
        "family",
        "p at start",
        "p at end",
        *({"kl": "KL at end, nats/sequence", "gap": "gap at end"}[x] for x in shown),
    ]
    rows = [
        (
            f"`{name}`",
            *(probability(values[f"testbed/p/{name}"]) for values in (first, last)),
            *(number(last[f"testbed/{part}/{name}"]) for part in shown),
        )
        for name in families
    ]
    return f"On held-out prompts of the testbed; p is the probability of a correct completion.\n\n{table(head, rows)}"


def versions(found: Mapping[str, Any]) -> str:
    """Libraries and the state of the code when the run began."""
    names = {name: value for name, value in found.items() if isinstance(value, str) and name != "git"}
    git = found.get("git")
    if isinstance(git, Mapping):
        names["git"] = f"{git['commit']}, {'clean' if git['clean'] else 'with changes that were not committed'}"
    elif git:
        names["git"] = git
    names |= {f"task {name}": str(version) for name, version in (found.get("tasks") or {}).items()}
    return table(("", "version"), names.items())


def _mean(key: str, rows: Sequence[Mapping[str, Any]]) -> float | None:
    values = [row.get(key) for row in rows]
    return None if None in values else sum(values) / len(values)

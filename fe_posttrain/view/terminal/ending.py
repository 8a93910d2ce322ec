"""What the terminal says when a run is done: samples, F from start to end, the verdict, and where everything is."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from fe_posttrain.view.support import TERMS, numbers_table, shown_value, verdict_table
from fe_posttrain.view.terminal.callback import REPORT
from fe_posttrain.view.text import duration, number, probability

# (column, key of the summary's `free_energy`)
_ENERGY = (
    ("F", "total"),
    ("F*", "optimum"),
    ("gap", "gap"),
    ("reward term", "reward"),
    ("demo term", "demonstration"),
    ("KL (nats)", "kl"),
    ("penalty (nats²)", "demonstration_penalty"),
)


_WIDE = 80  # columns that exact values and verdicts need beside each other


def summarise(console: Console, summary: Mapping, samples: list[Mapping]) -> None:
    """What a person wants to know when a run ends; nothing is cut off from 80 columns on.

    Args:
        summary: the content of summary.json.
        samples: the content of samples.json; the first of each family is shown.
    """
    console.print()
    if samples:
        _print(console, _samples(samples, console.encoding))
    if summary["free_energy"]:
        _print(console, _energy(summary["free_energy"]))
    support = summary["support"]
    tracked = bool(support) and "off" not in support
    if tracked:
        console.print(f" [bold]Verdict[/bold] at B = {support['key']['budget']}, percentage points", highlight=False)
        _print(console, verdict_table(support))
    _show_families(console, summary["families"], support.get("families", {}) if tracked else {})
    if tracked:
        console.print(Padding(escape(support["sentence"]), (0, 1, 1, 1)), highlight=False)
    elif support:
        console.print(f" support was not tracked to the end: {escape(support['off'])}\n", highlight=False)


def farewell(console: Console, folder: Path, model: Path, *, steps: int, seconds: float) -> None:
    """Where a finished run lies; the report only where one was written."""
    lines = [("done", f"{steps} steps in {duration(seconds)}"), ("run folder", str(folder))]
    if (folder / REPORT).is_file():
        lines.append(("report", str(folder / REPORT)))
    lines.append(("model", f"{model}; its README.md shows how to load it"))
    for label, text in lines:
        console.print(f" [dim]{label:<11}[/dim]{escape(text)}", highlight=False, soft_wrap=True)


def _print(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 1, 1), expand=False), highlight=False)


def _samples(samples: list[Mapping], encoding: str) -> Table:
    right, wrong = ("✓", "✗") if encoding.startswith("utf") else ("right", "wrong")

    def marked(row: Mapping, end: str) -> str:
        mark = f"[green]{right}[/green]" if row[f"{end}_correct"] else f"[red]{wrong}[/red]"
        return f"{escape(row[end])} {mark}"

    table = numbers_table("held-out sample", "prompt", "before", "after", "right answer")
    for column in table.columns:
        column.justify, column.no_wrap, column.overflow = "left", False, "fold"
    for family in dict.fromkeys(row["family"] for row in samples):
        row = next(row for row in samples if row["family"] == family)
        texts = (escape(row["prompt"]), marked(row, "before"), marked(row, "after"), escape(row["answer"]))
        table.add_row(escape(family), *texts)
    return table


def _energy(terms: Mapping[str, Mapping[str, float]]) -> Table:
    shown = [(column, terms[key]) for column, key in _ENERGY if key in terms]
    table = numbers_table("mean of steps", *(column for column, _ in shown))
    table.columns[0].no_wrap = True
    for label, end in (("first tenth", "start"), ("last tenth", "end")):
        table.add_row(label, *(number(values[end]) for _, values in shown))
    return table


def _show_families(console: Console, exact: Mapping, support: Mapping) -> None:
    """One table where it fits, else one for what is exact and one for the verdicts."""
    parts = [(exact, support)] if console.width >= _WIDE else [(exact, {}), ({}, support)]
    for exact_part, support_part in parts:
        if exact_part or support_part:
            about = ["exact p of held-out prompts"] * bool(exact_part)
            about += ["points, each line at alpha by itself"] * bool(support_part)
            console.print(f" [bold]Families[/bold]: {'; '.join(about)}", highlight=False)
            _print(console, _families(exact_part, support_part))


def _families(exact: Mapping[str, Mapping[str, float]], support: Mapping[str, Mapping]) -> Table:
    """A line for each family: exact p at both ends where it is known, and the terms of its own verdict."""
    table = numbers_table("family", *(("p start", "p end") if exact else ()), *(TERMS if support else ()))
    for name in dict.fromkeys([*exact, *support]):
        shown = [probability(exact[name][end]) if name in exact else "" for end in ("start", "end")] if exact else []
        if support:
            terms = support.get(name, {}).get("verdict")
            shown += [shown_value(term, terms[term]) if terms else "" for term in TERMS]
        table.add_row(escape(name), *shown)
    return table

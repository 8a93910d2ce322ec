"""The support report on a terminal: what was gained and where from, regimes, sightings, families; the sentence last.

`show` takes the dict that a support JSON holds.
"""

from collections.abc import Callable, Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from fe_posttrain.view.text import ceiling, floor, nearest

TERMS = ("gain", "elicited", "created", "undetermined", "lost")
_CERTIFIED = ("elicited", "created", "lost")


def show(console: Console, report: Mapping) -> None:
    """Print one report; about 30 lines, and one more a family."""
    draws = "; ".join(f"{shown_draws(report['draws'][side])} of the {side}" for side in ("reference", "trained"))
    console.print(f"[bold]Verdict[/bold] at B = {report['key']['budget']}, percentage points", highlight=False)
    _print(console, verdict_table(report))
    console.print("[bold]Prompts by regime[/bold]")
    _print(console, _regimes(report["calls"]))
    console.print("[bold]Share of the gain that B draws of the reference explain[/bold] (as drawn; no claim)")
    _print(console, _attribution(report))
    console.print("[bold]Prompts solved at least once[/bold] (no claim), and what chance alone would show")
    _print(console, _sightings(report))
    console.print(f" {_ratios(report)}\n", highlight=False)
    if report.get("families"):
        console.print("[bold]Families[/bold], percentage points, each line at alpha by itself")
        _print(console, _families(report["families"]))
    for name, check in report["checks"].items():
        why = f": {check['why']}" if check.get("why") else ""
        console.print(f"check {escape(name)} {check['verdict']}{escape(why)}", highlight=False)
    console.print(f"{report['prompts']} prompts; draws of each: {draws}\n", highlight=False)
    console.print(escape(report["sentence"]), highlight=False)


def _print(console: Console, table: Table) -> None:
    console.print(Padding(table, (0, 0, 1, 1), expand=False), highlight=False)


def numbers_table(*columns: str) -> Table:
    """First column to the left, numbers to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=bool(i))
    return table


def verdict_table(report: Mapping) -> Table:
    """The terms of the verdict with their ends, percentage points, and what each means."""
    meaning = meanings(report["key"]["budget"])
    table = numbers_table("", "value", "low", "high")
    table.add_column("")
    for name in TERMS:
        term = report["verdict"][name]
        style = "bold" if name in _CERTIFIED and term["low"] > 0 else ""
        numbers = shown_value(name, term), shown_end(term["low"], floor), shown_end(term["high"], ceiling)
        table.add_row(name, *numbers, f"[dim]{meaning[name]}[/dim]", style=style)
    return table


def meanings(budget: int) -> dict[str, str]:
    """Each term of the verdict in a few words."""
    return {
        "gain": "trained less reference",
        "elicited": f"within reach of {budget} draws",
        "created": "out of their reach",
        "undetermined": "neither is certified",
        "lost": "the reference solves it more often",
    }


def _regimes(calls: Mapping[str, Mapping[str, int]]) -> Table:
    table = numbers_table("", *calls["reference"])
    for side, counts in calls.items():
        table.add_row(side, *(str(n) if n else "[dim]0[/dim]" for n in counts.values()))
    return table


def _attribution(report: Mapping) -> Table:
    half = report["b50"] if report["b50"] is not None else report.get("b50_above")
    table = numbers_table("B", *(str(row["budget"]) for row in report["attribution"]), "half at B")
    shares = ["-" if row["share"] is None else f"{row['share']:.2f}" for row in report["attribution"]]
    end = "-" if half is None else f"{half}" if report["b50"] is not None else f"> {half}"
    table.add_row("share", *shares, end)
    return table


def _sightings(report: Mapping) -> Table:
    seen, chance = report["sightings"], report["null_floor"]
    table = numbers_table("", "by both", "reference only", "trained only", "by neither")
    table.add_row("seen", *(str(seen[name]) for name in ("kept", "shrunk", "expanded", "out")))
    table.add_row("by chance", "", f"{chance['shrunk']:.1f}", f"{chance['expanded']:.1f}", style="dim")
    return table


def _ratios(report: Mapping) -> str:
    shown = ("-" if report[name] is None else f"{report[name]:.2f}" for name in ("srr", "ndr", "sds", "nscr"))
    return "  ".join(f"{name} {value}" for name, value in zip(("SRR", "NDR", "SDS", "NSCR"), shown, strict=True))


def _families(families: Mapping[str, Mapping]) -> Table:
    table = numbers_table("family", "prompts", *TERMS)
    for name, part in families.items():
        values = [shown_value(term, part["verdict"][term]) for term in TERMS]
        table.add_row(escape(name), str(part["prompts"]), *values)
    return table


def shown_value(name: str, term: Mapping) -> str:
    """The value of a term; a certified one is a lower end, rounded down."""
    return shown_end(term["value"], floor if name in _CERTIFIED else nearest)


def shown_end(value: float | None, rounded: Callable[[float], str]) -> str:
    """An end in percentage points by `text.floor` or `text.ceiling`, so that it claims no more than the number."""
    return "" if value is None else rounded(value)


def shown_draws(side: Mapping[str, int]) -> str:
    """Draws of a prompt, least and most of a side of the report."""
    return f"{side['least']}" if side["least"] == side["most"] else f"{side['least']} to {side['most']}"

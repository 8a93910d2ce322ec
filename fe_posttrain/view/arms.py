"""The arms of a comparison beside each other, on a terminal and as Markdown: what `methods.results` found, as words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from fe_posttrain.view.support import numbers_table
from fe_posttrain.view.text import ceiling, compact, duration, floor, number

MARKS = {True: "✓", False: "✗", None: "?"}
_TERMS = ("elicited", "created", "lost")
_ABREAST = 2  # arms in one table of differences on a terminal


@dataclass(frozen=True)
class Sheet:
    """A table: title, head, rows; first column texts, the rest numbers."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def points(share: float) -> str:
    """A share as percentage points."""
    return f"{100 * share:.1f}"


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print tables, verdicts with their conditions, and notes."""
    for sheet in sheets(found, abreast=_ABREAST):
        table = numbers_table(*map(escape, sheet.head))
        table.columns[0].no_wrap = True
        for row in sheet.rows:
            table.add_row(*map(escape, row))
        console.print(f"[bold]{escape(sheet.title)}[/bold]", highlight=False)
        console.print(Padding(table, (0, 0, 1, 1), expand=False), highlight=False)
    for title, conditions in verdicts(found):
        console.print(f"[bold]{escape(title)}[/bold]", highlight=False)
        for line in conditions:
            console.print(Padding(escape(line), (0, 0, 0, 2)), highlight=False)
        console.print()
    for note in found["notes"]:
        console.print(escape(note), highlight=False)


def markdown(found: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The same as a Markdown file; `figures`: title -> path of a picture."""
    pieces = [f"# {found['name']}", _opening(found)]
    for sheet in sheets(found):
        lines = [sheet.head, ["---", *["---:"] * (len(sheet.head) - 1)], *sheet.rows]
        pieces += [f"## {sheet.title}", "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)]
    for title, conditions in verdicts(found):
        pieces += [f"## {title}", "\n".join(f"* {line}" for line in conditions)]
    pieces += found["notes"]
    pieces += [f"![{title}]({path})" for title, path in figures.items()]
    return "\n\n".join(pieces) + "\n"


def _opening(found: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, found["seeds"]))
    return (
        f"Arms {', '.join(found['arms'])}; seeds {seeds}; B = {', '.join(map(str, found['budgets']))}. Probabilities "
        "and terms of the verdict in percentage points, means over seeds; certified terms are lower ends. Differences: "
        "paired by seed and prompt, 95 % hierarchical bootstrap over seeds, prompts and samples."
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or " "


def sheets(found: Mapping[str, Any], abreast: int | None = None) -> Iterator[Sheet]:
    """The tables, in the order in which they are read; differences of at most `abreast` arms in one."""
    if found["tuning"]:
        yield _tuned(found["tuning"])
    yield _reached(found)
    if any(arm["families"] for arm in found["arms"].values()):
        yield _by_family(found)
    yield _moved(found)
    yield _spent(found)
    labels = [label for label, pair in found["pairs"].items() if not pair["problem"]]
    abreast = abreast or max(1, len(labels))
    for first in range(0, len(labels), abreast):
        yield _differences(found, labels[first : first + abreast])
        if (recovered := _recovered(found, labels[first : first + abreast])).rows:
            yield recovered
    if any("generated" in found["pairs"][label] for label in labels):
        yield _paid(found, labels)
    if any("kl" in found["pairs"][label] for label in labels):
        yield _at_equal_kl(found, labels)


def _reached(found: Mapping[str, Any]) -> Sheet:
    columns = {
        "pass_1": ("pass@1", points),
        "pass_k": (f"pass@{found['k']}", points),
        "elicited_low": ("elicited", floor),
        "created_low": ("created", floor),
        "lost_low": ("lost", floor),
    }
    if found["k"] == 1:
        del columns["pass_k"]
    of_reference = [_shown(found["reference"].get(key), columns[key][1]) for key in columns]
    rows = [["(reference)", "", "", *of_reference], *_rows(found, columns, lambda arm: [arm["role"], _seeds(arm)])]
    title = "Reached, percentage points; elicited, created, lost: certified at least"
    return Sheet(title, ["arm", "role", "seeds", *_titles(columns)], rows)


def _by_family(found: Mapping[str, Any]) -> Sheet:
    """pass@1 means over seeds; what is certified in every seed, that is the least over them."""
    rows = []
    for label, arm in found["arms"].items():
        for name, numbers in arm["families"].items():
            reached = [points(sum(numbers[key]) / len(numbers[key])) for key in ("reference", "pass_1")]
            rows.append([label, name, *reached, *(floor(min(numbers[f"{term}_low"])) for term in _TERMS)])
    title = "By family; elicited, created, lost: certified in every seed at least"
    return Sheet(title, ["arm", "family", "before", "pass@1", *_TERMS], rows)


def _tuned(tuning: Mapping[str, Any]) -> Sheet:
    """pass@1 of every trial; the chosen one is marked."""
    rows = []
    for label, tried in tuning["arms"].items():
        for one in tried:
            told = ", ".join(f"{key} {value}" for key, value in one["settings"].items())
            rows.append([label, told, points(one["pass_1"]), MARKS[True] if one["chosen"] else ""])
    return Sheet(f"Trials of seed {tuning['seed']}; the best was taken", ["arm", "tried", "pass@1", "taken"], rows)


def _moved(found: Mapping[str, Any]) -> Sheet:
    columns = {
        "free_energy": ("F", number),
        "gap": ("gap", number),
        "kl": ("KL, nats", number),
        "kl_efficiency": ("KL efficiency", lambda x: f"{x:.2f}"),
    }
    return Sheet("Free energy, and KL to the reference", ["arm", *_titles(columns)], list(_rows(found, columns)))


def _spent(found: Mapping[str, Any]) -> Sheet:
    columns = {
        "generated_tokens": ("generated", compact),
        "gradient_tokens": ("gradient", compact),
        "verifier_calls": ("calls", compact),
        "demonstrations": ("demos", compact),
        "updates": ("updates", compact),
        "flops": ("FLOPs", lambda x: f"{x:.1e}"),
        "train_seconds": ("time", duration),
    }
    title = "Spent by a run: tokens generated and trained on, verifier calls, ..."
    return Sheet(title, ["arm", *_titles(columns)], list(_rows(found, columns)))


def _titles(columns: Mapping[str, tuple[str, Callable]]) -> list[str]:
    return [title for title, _ in columns.values()]


def _rows(
    found: Mapping[str, Any],
    columns: Mapping[str, tuple[str, Callable]],
    first: Callable[[Mapping], list[str]] = lambda arm: [],
) -> Iterator[list[str]]:
    for label, arm in found["arms"].items():
        yield [label, *first(arm), *(_shown(arm["mean"].get(key), shown) for key, (_, shown) in columns.items())]


def _shown(value: float | None, shown: Callable[[float], str]) -> str:
    return "–" if value is None else shown(value)


def _seeds(arm: Mapping[str, Any]) -> str:
    done, missing = len(arm["seeds"]), len(arm["missing"])
    return f"{done} of {done + missing}" if missing else f"{done}"


def _differences(found: Mapping[str, Any], labels: Sequence[str]) -> Sheet:
    rows = []
    for key, title, scale in (
        ("pass_1", "pass@1", 100),
        ("pass_k", f"pass@{found['k']}", 100),
        ("elicited_low", "elicited, certified", 1),
        ("created_low", "created, certified", 1),
        ("lost_low", "lost, certified", 1),
        ("free_energy", "F", None),
        ("gap", "gap", None),
        ("kl", "KL", None),
        ("kl_efficiency", "KL efficiency", None),
    ):
        cells = [interval(found["pairs"][label]["differences"].get(key), scale) for label in labels]
        if any(cell != "–" for cell in cells):
            rows.append([title, *cells])
    return Sheet(f"Less {found['baseline']}, with 95 % interval", ["", *labels], rows)


def _recovered(found: Mapping[str, Any], labels: Sequence[str]) -> Sheet:
    """Of all probe prompts and of every family on which the baseline has gained."""
    of = [found["pairs"][label]["recovered"] for label in labels]
    names = dict.fromkeys(name for shares in of for name, one in shares.items() if one is not None)
    rows = [[name, *(share(shares.get(name)) for shares in of)] for name in names]
    title = f"Share of the gain of {found['baseline']} that is recovered, percent, with 95 % interval"
    return Sheet(title, ["prompts", *labels], rows)


def share(found: Mapping[str, float] | None) -> str:
    """`98.1 [95.0, 101.2]` percent, ends rounded outwards; "no gain" where there is none to share."""
    if found is None:
        return "no gain"
    value, low, high = (100 * found[end] for end in ("value", "low", "high"))
    if found["seeds"] == 1:
        return f"{value:.1f} (one seed)"
    return f"{value:.1f} [{floor(low)}, {ceiling(high)}]"


def interval(found: Mapping[str, float] | None, scale: float | None = None) -> str:
    """`+2.1 [-0.3, +4.4]`: in percentage points where there is a scale; ends are rounded outwards.

    One seed shows no spread of seeds, and gets no interval.
    """
    if found is None:
        return "–"
    value, low, high = ((scale or 1) * found[end] for end in ("value", "low", "high"))
    if found["seeds"] == 1:
        return f"{_signed(number(value) if scale is None else f'{value + 0.0:.1f}')} (one seed)"
    if scale is None:
        return f"{_signed(number(value))} [{_signed(number(low))}, {_signed(number(high))}]"
    return f"{_signed(f'{value + 0.0:.1f}')} [{_signed(floor(low))}, {_signed(ceiling(high))}]"


def _signed(text: str) -> str:
    bare = text.removeprefix("-")
    if not bare.strip("0."):
        return bare
    return text if text.startswith("-") else f"+{text}"


def _paid(found: Mapping[str, Any], labels: Sequence[str]) -> Sheet:
    rows = []
    for label in labels:
        paid = found["pairs"][label]["generated"]
        shares = [paid["differences"][key] for key in ("generated_tokens", "verifier_calls")]
        cells = ["paid, other did not" if share is None else f"{100 * share + 0.0:+.1f} %" for share in shares]
        rows.append([label, *cells, f"{MARKS[paid['holds']]} {'equal' if paid['holds'] else 'not matched'}"])
    title = f"Same rollouts as {found['baseline']}, within 2 % (the seed that differs most)"
    return Sheet(title, ["arm", "tokens generated", "verifier calls", "match"], rows)


def _at_equal_kl(found: Mapping[str, Any], labels: Sequence[str]) -> Sheet:
    rows = []
    for label in labels:
        at = found["pairs"][label]["kl"]
        if at["kl"] is None:
            rows.append([label, at["why"], "", "", ""])
        else:
            both = [points(at["arm"]), points(at["other"]), interval(at["difference"], 100)]
            rows.append([label, number(at["kl"]), *both])
    return Sheet("pass@1 at equal KL", ["arm", "KL, nats", "arm's", f"{found['baseline']}'s", "difference"], rows)


def verdicts(found: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Of every method its verdict, and whether each condition of the rule holds and why."""
    for label, verdict in found["verdicts"].items():
        at = ", ".join(map(str, verdict["budget"]))
        unchecked = sum(condition["holds"] is None for condition in verdict["conditions"])
        told = f" ({unchecked} of {len(verdict['conditions'])} conditions not checked)" if unchecked else ""
        lines = [f"{MARKS[one['holds']]} {one['name']}: {one['why']}" for one in verdict["conditions"]]
        yield f"{label}: {verdict['conclusion']} at B = {at}{told}", lines

"""The flow of prompts from the regime that the reference has them in to the regime that they are in now."""

from collections import Counter
from collections.abc import Mapping

from fe_posttrain.view.page.chart import svg
from fe_posttrain.view.page.markup import Html, data, table, tag

ORDER = ("basin", "tail", "undetermined", "barrier", "out", "singular")
_WIDTH, _TOP, _HEIGHT, _GAP, _BAR = 520, 34, 250, 12, 14
_FROM, _TO = 158, 352  # where the bars stand


def counts(points: Mapping) -> Counter:
    """(reference regime, current regime) -> prompts."""
    return Counter(zip(points["regime"]["reference"], points["regime"]["trained"], strict=True))


def flow(points: Mapping, message: str) -> Html:
    """Two columns of regimes and ribbons between them, as wide as they hold prompts."""
    moved = counts(points)
    total = sum(moved.values())
    sides = [{name: sum(n for pair, n in moved.items() if pair[i] == name) for name in ORDER} for i in (0, 1)]
    most = max(sum(1 for n in side.values() if n) for side in sides)
    unit = (_HEIGHT - _GAP * (most - 1)) / total
    starts = [_stacked(side, unit) for side in sides]
    at = [dict(start) for start in starts]
    ribbons = []
    for a in ORDER:
        for b in ORDER:
            if n := moved.get((a, b), 0):
                ribbons.append(_ribbon(a, b, n, at[0][a], at[1][b], n * unit))
                at[0][a] += n * unit
                at[1][b] += n * unit
    bars = [_bar(name, n, starts[0][name], n * unit, _FROM - _BAR, -1) for name, n in sides[0].items() if n]
    bars += [_bar(name, n, starts[1][name], n * unit, _TO, 1) for name, n in sides[1].items() if n]
    heads = [
        tag("text", "reference", x=_FROM, y=18, class_="axis end"),
        tag("text", "now", x=_TO, y=18, class_="axis"),
    ]
    return svg(_WIDTH, _TOP + _HEIGHT + 16, message, heads, ribbons, bars)


def numbers(points: Mapping) -> Html:
    moved = counts(points)
    to = [b for b in ORDER if any(pair[1] == b for pair in moved)]
    rows = [[a, *(data(moved.get((a, b), 0)) for b in to)] for a in ORDER if any(pair[0] == a for pair in moved)]
    return table(["reference ↓ now →", *to], rows)


def _stacked(side: Mapping[str, int], unit: float) -> dict[str, float]:
    """Where each regime's bar begins; a column that has fewer bars is centred."""
    present = [name for name in ORDER if side[name]]
    used = sum(side.values()) * unit + _GAP * (len(present) - 1)
    at, found = _TOP + (_HEIGHT - used) / 2, {}
    for name in present:
        found[name] = at
        at += side[name] * unit + _GAP
    return found


def _bar(name: str, n: int, y: float, height: float, x: float, side: int) -> Html:
    place = x - 9 if side < 0 else x + _BAR + 9
    label = tag("text", f"{name} ", tag("tspan", n, class_="strong"), x=place, y=f"{y + height / 2:.1f}", dy=".34em",
                class_=f"label{' end' if side < 0 else ''}")  # fmt: skip
    key = f"support/calls/{'reference' if side < 0 else 'trained'}/{name}"
    words = {"data_key": key, "data_value": n}
    bar = tag("rect", x=x, y=f"{y:.2f}", width=_BAR, height=f"{height:.2f}", class_=f"bar {name}", **words)
    return tag("g", bar, label)


def _ribbon(a: str, b: str, n: int, y: float, to: float, thick: float) -> Html:
    middle = (_FROM + _TO) / 2
    path = (
        f"M{_FROM},{y:.2f}C{middle},{y:.2f} {middle},{to:.2f} {_TO},{to:.2f}V{to + thick:.2f}"
        f"C{middle},{to + thick:.2f} {middle},{y + thick:.2f} {_FROM},{y + thick:.2f}Z"
    )
    return tag("path", tag("title", f"{n} prompts: {a} → {b}"), d=path, class_=f"ribbon {a}")

"""Bars: the gain split by where it came from, and prompts by regime at each probe."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from fe_posttrain.view.page.chart import svg
from fe_posttrain.view.page.markup import Html, shown, tag
from fe_posttrain.view.page.scales import Scale, around, steps, tick_label
from fe_posttrain.view.support import shown_value

_TOP, _THICK, _BASE = 44, 64, 176  # of the bar of the gain
_WIDE = 8.0  # drawing units that a letter of a label takes, at least


def gain_bar(verdict: Mapping[str, Mapping], message: str) -> Html:
    """gain = elicited + created + undetermined - lost, as one bar: what was gained to the right of 0, what was lost
    to the left; below it the gain with its interval. Percentage points."""
    gain = verdict["gain"]
    right, left = [], []
    for name in ("elicited", "created", "undetermined", "lost"):
        value = verdict[name]["value"]
        (left if name == "lost" or value < 0 else right).append((name, abs(value)))
    ends = [sum(v for _, v in right), -sum(v for _, v in left), gain["value"], gain["low"], gain["high"], 0.0]
    across = around(ends, 16, 544, about=6)
    pieces = [*_grid(across, _TOP, _BASE)]
    for parts, sign in ((right, 1), (left, -1)):
        at = 0.0
        for name, value in parts:
            pieces += _segment(name, at, at + sign * value, verdict[name]["value"], across)
            at += sign * value
    pieces += _interval(gain, across)
    words = "percentage points of mean p over the probe prompts"
    pieces.append(tag("text", words, x=280, y=_BASE + 44, class_="axis mid"))
    return svg(560, _BASE + 52, message, tag("g", pieces, class_="plot", **across.attributes("x")), class_="wide")


def _grid(across: Scale, top: int, bottom: int) -> list[Html]:
    found = []
    for value in across.ticks(6):
        x = f"{across(value):.1f}"
        zero = " zero" if value == 0 else ""
        found.append(tag("line", x1=x, x2=x, y1=top - 10, y2=bottom, class_=f"grid{zero}"))
        found.append(tag("text", tick_label(value), x=x, y=bottom + 18, class_="tick mid"))
    return found


def _segment(name: str, start: float, end: float, value: float, across: Scale) -> list[Html]:
    """A stretch of the bar, with name and value above it where there is room."""
    if start == end:
        return []
    a, b = sorted((across(start), across(end)))
    label = f"{name} {shown_value(name, {'value': value})}"
    found = [
        tag(
            "rect",
            tag("title", f"{label} points"),
            x=f"{a:.2f}",
            y=_TOP,
            width=f"{b - a:.2f}",
            height=_THICK,
            class_=f"bar {name}",
            data_key=f"verdict/{name}",
            data_value=repr(value),
        )
    ]
    if b - a >= _WIDE * len(label):
        found.append(tag("text", label, x=f"{(a + b) / 2:.1f}", y=_TOP - 18, class_="label mid"))
    elif b - a >= _WIDE * 5:
        short = shown_value(name, {"value": value})
        found.append(tag("text", short, x=f"{(a + b) / 2:.1f}", y=_TOP - 18, class_="label mid"))
    return found


def _interval(gain: Mapping[str, float], across: Scale) -> list[Html]:
    at = (_TOP + _THICK + _BASE) / 2
    low, value, high = (across(gain[name]) for name in ("low", "value", "high"))
    marks = [
        tag("line", x1=f"{low:.2f}", x2=f"{high:.2f}", y1=at, y2=at, class_="whisker", data_key="verdict/gain"),
        *(tag("line", x1=f"{x:.2f}", x2=f"{x:.2f}", y1=at - 7, y2=at + 7, class_="whisker") for x in (low, high)),
        tag("circle", cx=f"{value:.2f}", cy=at, r=5, class_="gain-dot", data_key="verdict/gain"),
    ]
    before = low > 280
    x = low - 10 if before else high + 10
    text = f"gain {shown_value('gain', gain)}"
    return [*marks, tag("text", text, x=f"{x:.1f}", y=at + 5, class_=f"label{' end' if before else ''}")]


def columns(at: Sequence[int], parts: Mapping[str, Sequence[int]], last: int, message: str, y_label: str) -> Html:
    """A column for each probe, stacked from below in the order of `parts`.

    Args:
        at: steps (n,).
        parts: regime -> counts (n,); also the class of the style sheet.
        last: the last step of the run.
    """
    width, height = 520, 270
    across = steps(last, 76, width - 32)
    up = around([0, max(map(sum, zip(*parts.values(), strict=True)))], height - 44, 26, about=5)
    pieces = []
    for value in up.ticks(5):
        y = f"{up(value):.1f}"
        pieces.append(tag("line", x1=58, x2=width - 16, y1=y, y2=y, class_="grid"))
        pieces.append(tag("text", tick_label(value), x=51, y=y, dy=".34em", class_="tick end"))
    for value in [x for x in across.ticks(6) if x == int(x)]:
        pieces.append(tag("text", tick_label(value), x=f"{across(value):.1f}", y=height - 27, class_="tick mid"))
    pieces += _stacks(at, parts, across, up)
    pieces.append(tag("text", "step", x=width - 16, y=height - 8, class_="axis end"))
    pieces.append(tag("text", y_label, x=4, y=14, class_="axis"))
    plot = tag("g", pieces, class_="plot", **across.attributes("x"), **up.attributes("y"))
    return svg(width, height, message, plot)


def _stacks(at: Sequence[int], parts: Mapping[str, Sequence[int]], across: Scale, up: Scale) -> list[Html]:
    """The columns; as thick as the nearest two of them allow."""
    nearest = min((b - a for a, b in pairwise(at)), default=across.high)
    thick = max(2.0, min(34.0, 0.7 * (across(nearest) - across(0))))
    found = []
    for i, step in enumerate(at):
        under = 0
        for name, counts in parts.items():
            low, high = up(under), up(under + counts[i])
            under += counts[i]
            if not counts[i]:
                continue
            words = {"data_key": f"support/calls/trained/{name}", "data_value": counts[i], "data_step": step}
            place = {"x": f"{across(step) - thick / 2:.2f}", "y": f"{high:.2f}"}
            size = {"width": f"{thick:.2f}", "height": f"{low - high:.2f}"}
            title = tag("title", f"step {step}: {shown(counts[i])} {name}")
            found.append(tag("rect", title, class_=f"bar {name}", **place, **size, **words))
    return found

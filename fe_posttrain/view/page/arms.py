"""Pictures of a comparison as SVG files of their own: success over KL and over steps, paired differences."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from fe_posttrain.view.page.chart import Frame, Line, chart
from fe_posttrain.view.page.markup import Html, tag
from fe_posttrain.view.page.prompt_map import COLOURS
from fe_posttrain.view.page.scales import around
from fe_posttrain.view.page.series import message

_ROW = 20  # height of a line of the legend


def pictures(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name of the file, title and SVG text of every picture that there is something to draw for."""
    for name, title, of_round, x_label in (
        ("success_over_kl", "pass@1 over KL to the reference", lambda step, kl: kl, "KL, nats"),
        ("success_over_steps", "pass@1 over steps", lambda step, kl: step, "step"),
    ):
        lines = [_course(label, arm, i, of_round) for i, (label, arm) in enumerate(found["arms"].items())]
        lines = [line for line in lines if line.x]
        last = max((x for line in lines for x in line.x), default=0.0)
        if last > 0:
            ticks = [tick for tick in around([0.0, last], 0, 1).ticks(6) if tick <= last]
            frame = Frame(x_label, "percentage points", (0, last), ticks, holds=(0,), zero=True)
            yield name, title, alone(lines, frame, title)
    lines = list(_gained(found))
    if lines:
        title = f"pass@1 less that of {found['baseline']}, with 95 % interval"
        ticks = list(range(1, len(lines) + 1))
        frame = Frame("arm", "percentage points", (0, len(lines) + 1), ticks, holds=(0,), zero=True)
        yield "differences", title, alone(lines, frame, title)


def _course(label: str, arm: Mapping[str, Any], i: int, of_round) -> Line:
    """pass@1 at each probe, mean over the seeds that have as many rounds as the shortest."""
    runs = list(arm["rounds"].values())
    rounds = [[run[j] for run in runs] for j in range(min(map(len, runs), default=0))]
    x = [sum(of_round(step, kl) for step, kl, _ in seeds) / len(seeds) for seeds in rounds]
    y = [100 * sum(success for *_, success in seeds) / len(seeds) for seeds in rounds]
    return Line("pass_1", label, x, y, _colour(i), dotted=True)


def _gained(found: Mapping[str, Any]) -> Iterator[Line]:
    paired = [(label, pair) for label, pair in found["pairs"].items() if not pair["problem"]]
    for i, (label, pair) in enumerate(paired, 1):
        ends = pair["differences"]["pass_1"]
        value, low, high = (100 * ends[end] for end in ("value", "low", "high"))
        known = {"low": [low], "high": [high]} if ends["seeds"] > 1 else {}
        colour = _colour(list(found["arms"]).index(label))
        yield Line("pass_1", f"{i} {label}", [i], [value], colour, dotted=True, **known)


def _colour(i: int) -> str:
    return COLOURS[i] if i < len(COLOURS) else "c8"


def alone(lines: Sequence[Line], frame: Frame, title: str) -> str:
    """A chart as an SVG file: title and legend above it, the page's style inside."""
    width, height = frame.size
    top = 34 + _ROW * len(lines)
    drawing = re.sub(r"^<svg[^>]*>|</svg>$", "", chart(lines, frame, message(title, lines)))
    legend = [
        tag(
            "g",
            tag("circle", cx=10, cy=40 + _ROW * i, r=5, class_=f"dot {line.colour}"),
            tag("text", line.label, x=24, y=40 + _ROW * i, dy=".34em"),
        )
        for i, line in enumerate(lines)
    ]
    style = (files("fe_posttrain.view.page") / "style.css").read_text()
    return (
        tag(
            "svg",
            tag("style", Html(style)),
            tag("rect", width=width, height=height + top, style="fill: var(--paper)"),
            tag("text", title, x=4, y=18, class_="label strong"),
            legend,
            tag("g", Html(drawing), transform=f"translate(0 {top})"),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height + top}",
            role="img",
        )
        + "\n"
    )

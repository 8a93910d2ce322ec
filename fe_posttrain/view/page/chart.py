"""Line charts: series over steps or over budgets, with their uncertainty where it is known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fe_posttrain.view.page.markup import Html, data, join, shown, table, tag
from fe_posttrain.view.page.scales import Scale, around, steps, tick_label
from fe_posttrain.view.page.thinning import evenly, outline


@dataclass(frozen=True)
class Line:
    """A series and how it is drawn.

    Args:
        key: of the metric, as logged; the page's definitions go by it.
        label: what the legend calls it.
        x, y: its points.
        colour: a class of the style sheet, `c1` to `c8` or a term of the verdict.
        dashed, dotted: dashed line; marks at its points.
        low, high: ends of an interval at each point, where they are known.
    """

    key: str
    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "c1"
    dashed: bool = False
    dotted: bool = False
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()

    def points(self) -> list[int]:
        """Indices of the points that are drawn."""
        return outline(self.y)


@dataclass(frozen=True)
class Frame:
    """Size and axes of a chart.

    Args:
        x_label, y_label: of the axes; y's stands above the drawing.
        x: first and last value; None: from 0 to the last point.
        x_ticks: values that are labelled; None: round ones.
        log_x, log_y: in logarithms.
        holds: values that the y axis must hold.
        rules: (value of x, label): vertical lines.
        zero: a line at y = 0.
        small: one of many.
    """

    x_label: str = "step"
    y_label: str = ""
    x: tuple[float, float] | None = None
    x_ticks: Sequence[float] | None = None
    log_x: bool = False
    log_y: bool = False
    holds: Sequence[float] = ()
    rules: Sequence[tuple[float, str]] = field(default=())
    zero: bool = False
    small: bool = False

    @property
    def size(self) -> tuple[int, int]:
        return (320, 150) if self.small else (520, 270)


def chart(lines: Sequence[Line], frame: Frame, message: str) -> Html:
    """An SVG of the lines.

    Args:
        message: the text in the place of the drawing: what it shows.
    """
    width, height = frame.size
    left, right, top, bottom = (52, 12, 12, 24) if frame.small else (58, 16, 26, 44)
    across = _across(lines, frame, left, width - right)
    values = [v for line in lines for i in line.points() for v in (line.y[i], *_ends(line, i)) if v is not None]
    up = around([*values, *frame.holds], height - bottom, top, log=frame.log_y, about=3 if frame.small else 5)
    pieces = [_axes(frame, across, up), _rules(frame, across, up)]
    pieces += [_drawn(line, across, up, frame) for line in lines]
    return svg(
        width,
        height,
        message,
        tag("g", pieces, class_="plot", **across.attributes("x"), **up.attributes("y")),
        class_="small" if frame.small else None,
    )


def svg(width: int, height: int, message: str, *inside: Html, class_: str | None = None) -> Html:
    """A drawing that scales with the page, and says what it shows to whoever cannot see it."""
    return tag(
        "svg",
        tag("desc", message),
        inside,
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=message,
        class_=class_,
    )


def legend(lines: Sequence[Line]) -> Html:
    """Which line is which; in HTML, so that it wraps."""
    keys = [
        tag("span", tag("i", class_=f"key {line.colour}{' dashed' if line.dashed else ''}"), line.label)
        for line in lines
    ]
    return tag("div", keys, class_="legend")


def numbers(lines: Sequence[Line], x_label: str = "step") -> Html:
    """The table behind a chart: a row for each x, thinned out at equal distances."""
    columns: list[tuple[str, dict[float, float | None]]] = []
    for line in lines:
        columns.append((line.label, dict(zip(line.x, line.y, strict=True))))
        for name, ends in (("low", line.low), ("high", line.high)):
            if ends:
                columns.append((f"{line.label}, {name}", dict(zip(line.x, ends, strict=True))))
    every = sorted({x for line in lines for x in line.x})
    kept = [every[i] for i in evenly(len(every))]
    rows = [[data(x), *(data(column.get(x)) for _, column in columns)] for x in kept]
    note = f"{len(kept)} of {len(every):,} rows, at equal distances; metrics.jsonl has them all."
    head = [x_label, *(name for name, _ in columns)]
    return join([table(head, rows, texts=0), tag("p", note, class_="note") if len(kept) < len(every) else None])


def is_thinned(lines: Sequence[Line]) -> bool:
    return any(len(line.points()) < len(line.y) for line in lines)


def finite(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The points that are numbers."""
    kept = [(a, b) for a, b in zip(x, y, strict=True) if isinstance(b, int | float) and math.isfinite(b)]
    return [a for a, _ in kept], [b for _, b in kept]


def _across(lines: Sequence[Line], frame: Frame, start: int, end: int) -> Scale:
    if frame.log_x:
        return Scale(*map(float, frame.x), start, end, log=True)
    first, last = frame.x or (0, max((x for line in lines for x in line.x), default=1))
    return steps(last, start, end, first)


def _axes(frame: Frame, across: Scale, up: Scale) -> list[Html]:
    base = up.start
    found = []
    for value in up.ticks(3 if frame.small else 5):
        y = f"{up(value):.1f}"
        at_zero = " zero" if frame.zero and value == 0 else ""
        found.append(tag("line", x1=across.start, x2=across.end, y1=y, y2=y, class_=f"grid{at_zero}"))
        found.append(tag("text", tick_label(value), x=across.start - 7, y=y, dy=".34em", class_="tick end"))
    ticks = frame.x_ticks or [x for x in across.ticks(4 if frame.small else 6) if x == int(x)]
    for value in ticks:
        found.append(tag("text", tick_label(value), x=f"{across(value):.1f}", y=base + 17, class_="tick mid"))
    if not frame.small:
        found.append(tag("text", frame.x_label, x=across.end, y=base + 36, class_="axis end"))
        found.append(tag("text", frame.y_label, x=4, y=14, class_="axis"))
    return found


def _rules(frame: Frame, across: Scale, up: Scale) -> list[Html]:
    found = []
    for value, label in frame.rules:
        x = f"{across(value):.1f}"
        found.append(tag("line", x1=x, x2=x, y1=up.start, y2=up.end, class_="rule"))
        beyond = across(value) > (across.start + across.end) / 2
        shift, side = (-6, " end") if beyond else (6, "")
        found.append(tag("text", label, x=f"{across(value) + shift:.1f}", y=up.end + 12, class_=f"note{side}"))
    return found


def _drawn(line: Line, across: Scale, up: Scale, frame: Frame) -> list[Html]:
    kept = line.points()
    places = [(across(line.x[i]), up(line.y[i])) for i in kept]
    path = "M" + "L".join(f"{x:.2f},{y:.2f}" for x, y in places)
    pieces = [_interval(line, i, across, up) for i in kept]
    style = f"line {line.colour}{' dashed' if line.dashed else ''}"
    if len(kept) > 1:
        pieces.append(tag("path", d=path, class_=style, data_key=line.key))
    if line.dotted or len(kept) == 1:
        radius = 2.5 if frame.small else 4
        pieces += [
            tag(
                "circle",
                tag("title", f"{line.label}, {frame.x_label} {shown(line.x[i])}: {shown(line.y[i])}"),
                cx=f"{x:.2f}",
                cy=f"{y:.2f}",
                r=radius,
                class_=f"dot {line.colour}",
                data_key=line.key if len(kept) == 1 else None,
            )
            for i, (x, y) in zip(kept, places, strict=True)
        ]
    return pieces


def _interval(line: Line, i: int, across: Scale, up: Scale) -> Html | None:
    low, high = _ends(line, i)
    if low is None or high is None:
        return None
    x = f"{across(line.x[i]):.2f}"
    return tag("line", x1=x, x2=x, y1=f"{up(low):.2f}", y2=f"{up(high):.2f}", class_=f"interval {line.colour}")


def _ends(line: Line, i: int) -> tuple[float | None, float | None]:
    return (line.low[i] if line.low else None), (line.high[i] if line.high else None)

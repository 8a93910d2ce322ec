"""From logged metrics to figures; their words are the catalogue's."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fe_posttrain.view import catalogue
from fe_posttrain.view.page.chart import Frame, Line, chart, finite, is_thinned, legend, numbers
from fe_posttrain.view.page.markup import Html, data, figure, join, shown, tag, words
from fe_posttrain.view.reading import RunData

_WIDE_RANGE = 1e3  # of positive values, from which a small chart takes logarithms

_FROM_ZERO = ("share", "probability", "tokens")  # units whose small charts begin at 0
_FEW = 12  # values that are marked one by one


def line(run: RunData, key: str, label: str | None = None, **how) -> Line | None:
    """The line of a logged key; None where nothing was logged under it."""
    x, y = finite(*run.series(key))
    return Line(key, label or key, x, y, **how) if y else None


def lines_of(run: RunData, keys: Mapping[str, tuple]) -> list[Line]:
    """Lines of those keys that were logged: key -> (label, colour, dashed)."""
    found = [line(run, key, label, colour=colour, dashed=dashed) for key, (label, colour, dashed) in keys.items()]
    return [one for one in found if one is not None]


def caption(lines: Iterable[Line]) -> Html:
    """What the catalogue says of each line's key."""
    parts, said = [], set()
    for one in lines:
        metric = catalogue.find(one.key)
        if metric is not None and metric.name not in said:
            said.add(metric.name)
            unit = f" ({metric.unit})" if metric.unit else ""
            label = tag("code", metric.name) if "*" in metric.name else tag("b", one.label)
            parts.append(tag("span", label, f"{unit}: ", words(metric.meaning), ". "))
    return join(parts)


def unit_of(key: str) -> str:
    metric = catalogue.find(key)
    return metric.unit if metric else ""


def over_steps(run: RunData, title: str, lines: Sequence[Line], **frame) -> Html | None:
    """A figure of lines over steps, with legend, caption and numbers; None without lines."""
    if not lines:
        return None
    asked = Frame(y_label=frame.pop("y_label", unit_of(lines[0].key)), x=(0, run.steps), **frame)
    note = f"At most 500 points of a line are drawn: {_KEPT}" if is_thinned(lines) else None
    return figure(
        title,
        join([legend(lines) if len(lines) > 1 else None, chart(lines, asked, message(title, lines))]),
        join([caption(lines), note]),
        numbers(lines),
    )


_KEPT = "of each stretch the least and the greatest logged value."


def message(title: str, lines: Sequence[Line]) -> str:
    """What a chart shows, for whoever cannot see it: first and last value of each line."""
    ends = "; ".join(
        f"{one.label} {shown(one.y[0])} at {shown(one.x[0])}, {shown(one.y[-1])} at {shown(one.x[-1])}" for one in lines
    )
    return f"{title}: {ends}"


def small(run: RunData, key: str, colour: str = "c1") -> Html | None:
    """A small figure of one key: its last value beside its name; with evaluation's values as dots, if there are any."""
    main = line(run, key, "training", colour=colour, dotted=len(run.series(key)[1]) <= _FEW)
    judged = line(run, f"eval_{key}", "evaluation", colour="c2", dotted=True)
    lines = [one for one in (main, judged) if one is not None]
    if not lines:
        return None
    metric = catalogue.find(key)
    last = lines[0].y[-1]
    values = [v for one in lines for v in one.y]
    log = key == "grad_norm" and min(values) > 0 and max(values) > _WIDE_RANGE * min(values)
    share = metric is not None and metric.unit in _FROM_ZERO
    frame = Frame(x=(0, run.steps), log_y=log, small=True, holds=(0,) if share else ())
    unit = f" {metric.unit}" if metric and metric.unit not in ("", "share", "reward") else ""
    title = join(
        [
            tag("code", key),
            tag(
                "span",
                data(last),
                unit,
                class_="last",
            ),
        ]
    )
    told = join([
        words(metric.meaning) if metric else "", "; logarithmic axis" if log else "",
        "; dots: evaluation" if judged and main else "",
    ])  # fmt: skip
    named = [replace(one, label=f"{key}, {one.label}" if len(lines) > 1 else key) for one in lines]
    return figure(title, chart(lines, frame, message(key, lines)), told, numbers(named), class_="small")


def smalls(run: RunData, keys: Iterable[str]) -> Html | None:
    """Small multiples of those keys that were logged."""
    found = [one for key in keys if (one := small(run, key)) is not None]
    return tag("div", found, class_="smalls") if found else None


def logged(run: RunData, *names: str) -> list[str]:
    """Keys of training rows that are one of these metrics of the catalogue (`*` for what a recipe names)."""
    metrics = [catalogue.named(name) for name in names]
    keys = [key for key in run.last() if not key.startswith("eval_")]
    return [key for metric in metrics for key in keys if metric.matches(key)]


def judged_only(run: RunData, *names: str) -> list[str]:
    """Keys of evaluation, without `eval_`, that training did not log."""
    last = run.last()
    metrics = [catalogue.named(name) for name in names]
    bare = [key.removeprefix("eval_") for key in last if key.startswith("eval_")]
    return [key for metric in metrics for key in bare if metric.matches(key) and key not in last]

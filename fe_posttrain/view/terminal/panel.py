"""The panel that stands at the foot of the terminal while a run trains.

`blocks` says what is shown, `Panel` lays it out for whatever width the terminal has. Both are cheap: a panel is drawn
several times a second.
"""

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from fe_posttrain.view.catalogue import named
from fe_posttrain.view.terminal.progress import Progress
from fe_posttrain.view.text import ceiling, compact, duration, floor, nearest, number, one_line, probability, sparkline

LABEL = 10  # columns of the labels
CURVE, BAR = 40, 48  # most columns of the curve of F and of the bar
GAP = "   "
DIM, BOLD, PLAIN = Style(dim=True), Style(bold=True), Style()
GOOD, WARN, BAD = Style(color="green"), Style(color="yellow", bold=True), Style(color="red", bold=True)

Span = tuple[str, Style]
Item = tuple[Span, ...]  # never broken over lines


class Block(NamedTuple):
    """A label and what stands beside it: items that flow over as many lines as they need, then perhaps a curve; or a
    text of at most `lines` lines."""

    label: str
    items: tuple[Item, ...] = ()
    curve: tuple[float, ...] = ()
    text: str = ""
    style: Style = PLAIN
    lines: int = 2


def value(label: str, shown: str, unit: str = "", style: Style = BOLD) -> Item:
    """`label 1.23 unit`, the value in bold."""
    spans = ((f"{label} ", DIM),) if label else ()
    return (*spans, (shown, style), *(((f" {unit}", DIM),) if unit else ()))


def blocks(seen: Progress, watched: Mapping[str, float], report: str = "") -> tuple[Block, ...]:
    """Everything below the bar, most important first; nothing of it changes when `seen` does.

    Args:
        watched: probabilities by label.
        report: path of the report, once it is written.
    """
    found = [_energy(seen), _terms(seen), _rewards(seen)]
    if watched:
        found.append(Block("exact", tuple(value(name, probability(p)) for name, p in watched.items())))
    found += [_evaluation(seen), *_support(seen), *_trouble(seen)]
    if seen.checkpoint and not seen.checkpoint.startswith("not saved"):
        found.append(Block("saved", text=seen.checkpoint, lines=1))
    if report:
        found.append(Block("report", text=report, lines=3))
    return tuple(block for block in found if block.items or block.text)


def _energy(seen: Progress) -> Block:
    names = (("", "total"), ("F*", "optimum"), ("gap", "gap"))
    return Block("F", _values(seen, ((label, f"free_energy/{name}") for label, name in names)), _curve(seen))


def _curve(seen: Progress) -> tuple[float, ...]:
    return tuple(seen.energy.points) if len(seen.energy.points) > 1 else ()


def _terms(seen: Progress) -> Block:
    terms = _values(seen, (("reward", "free_energy/reward"), ("demonstrations", "free_energy/demonstration")))
    if (kl := seen.last.get("free_energy/kl")) is not None:
        unit, beta = named("free_energy/kl").unit, seen.last.get("free_energy/beta", 0.0)
        terms += (value("KL", number(kl), unit), value("beta", f"{beta:.3g}"))
    if (penalty := seen.last.get("free_energy/demonstration_penalty")) is not None:
        beta = seen.last.get("free_energy/beta", 0.0)
        terms += (value("penalty", number(penalty), "nats²"), value("beta", f"{beta:.3g}"))
    return Block("terms", terms)


def _rewards(seen: Progress) -> Block:
    if "reward" not in seen.last:
        return Block("reward")
    means = {key.split("/")[1]: v for key, v in seen.last.items() if key.startswith("rewards/") and key[-5:] == "/mean"}
    parts = tuple(value(name, number(mean)) for name, mean in means.items()) if len(means) > 1 else ()
    length = seen.last.get("completions/mean_length")
    tokens = (value("length", f"{length:.1f}", named("completions/mean_length").unit),) if length is not None else ()
    return Block("reward", (value("", number(seen.last["reward"])), *parts, *tokens))


def _evaluation(seen: Progress) -> Block:
    keys = (("F", "eval_free_energy/total"), ("reward", "eval_reward"), ("loss", "eval_loss"))
    return Block("eval", _values(seen, keys))


def _support(seen: Progress) -> list[Block]:
    if seen.off:
        return [Block("support", text=f"no longer tracked: {one_line(seen.off)}", style=WARN)]
    if seen.verdict is None:
        return []
    terms, key = seen.verdict["verdict"], seen.verdict["key"]
    gain = terms["gain"]
    shown = f"{'+' if gain['value'] >= 0 else ''}{nearest(gain['value'])}"
    ends = f"({floor(gain['low'])} to {ceiling(gain['high'])})"
    lows = tuple(
        value(name, f">= {floor(terms[name]['low'])}", style=_certified(name, terms[name]["low"]))
        for name in ("elicited", "created", "lost")
    )
    where = (f"at step {seen.verdict['step']}, B = {key['budget']}", PLAIN)
    points = value("gain", shown, f"{ends} points")
    return [Block("verdict", ((where,), points)), Block("", lows)]


def _certified(name: str, low: float) -> Style:
    """Bold where anything is certified, in the colour of what it is; only 0.1 points and more are."""
    return (BAD if name == "lost" else GOOD + BOLD) if low >= 0.1 else PLAIN


def _trouble(seen: Progress) -> list[Block]:
    found = [Block("alarm", text=one_line(message), style=WARN) for message in seen.alarms]
    if (more := seen.alarm_count - len(seen.alarms)) > 0:
        found.append(Block("", text=f"and {more} before", style=DIM))
    if seen.fault:
        found.append(Block("fault", text=f"{seen.faulty_rows} rows left out; {one_line(seen.fault)}", style=BAD))
    if seen.checkpoint.startswith("not saved"):
        found.append(Block("saved", text=f"checkpoint {one_line(seen.checkpoint)}", style=BAD))
    return found


def _values(seen: Progress, names: Iterable[tuple[str, str]]) -> tuple[Item, ...]:
    return tuple(value(label, number(seen.last[key])) for label, key in names if key in seen.last)


class Panel:
    """What the terminal shows of `seen`: a rule with `title`, the bar with its clock, and `blocks`.

    `body` is replaced as a whole, so that a thread that only draws never sees half of it.
    """

    def __init__(self, seen: Progress, title: str, clock=time.monotonic):
        self.seen, self.title, self.clock = seen, title, clock
        self.body: tuple[Block, ...] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, ascii_only = options.max_width, options.ascii_only
        yield from _line([_rule(self.title, width, ascii_only)])
        for line in self._clock_lines(width, ascii_only):
            yield from _line(line)
        for block in self.body:
            for line in _laid_out(block, width, ascii_only):
                yield from _line(line)

    def _clock_lines(self, width: int, ascii_only: bool) -> list[list[Span]]:
        seen = self.seen
        left, speed = seen.left, seen.tokens_per_second
        times = [(duration(self.clock() - seen.started), BOLD), (" elapsed", DIM)]
        if left is not None and seen.step < seen.steps:
            times += [(", ", DIM), (duration(left), BOLD), (" left", DIM)]
        rate = [(compact(speed), BOLD), (" tokens/s", DIM)] if speed is not None else []
        count = f"{seen.step}/{seen.steps} "
        room = width - LABEL - len(count) - len(GAP) - _length(times)
        bar = room - (len(GAP) + _length(rate) if rate else 0)
        below = rate and bar < 12
        bar = max(0, min(BAR, room if below else bar))
        first = [*_label("step"), (count, BOLD), *_bar(seen.step, seen.steps, bar, ascii_only), (GAP, PLAIN), *times]
        if not rate:
            return [first]
        return [first, [*_label("speed"), *rate]] if below else [[*first, (GAP, PLAIN), *rate]]


def _laid_out(block: Block, width: int, ascii_only: bool) -> list[list[Span]]:
    """The lines of a block: its items as they fit, or its text, the last line cut with an ellipsis."""
    room = max(1, width - LABEL)
    if block.text:
        chopped = _wrapped(block.text, room, block.lines, "..." if ascii_only else "…")
        return [[*_label(block.label if not i else ""), (line, block.style)] for i, line in enumerate(chopped)]
    rows: list[list[Span]] = [[]]
    for item in block.items:
        used = _length(rows[-1])
        if used and used + len(GAP) + _length(item) > room:
            rows.append([])
        rows[-1] += [*([(GAP, PLAIN)] if rows[-1] else []), *item]
    free = min(CURVE, room - _length(rows[0]) - len(GAP))
    if block.curve and free >= 8 and not ascii_only:
        rows[0] += [(GAP, PLAIN), (sparkline(block.curve, free), GOOD)]
    return [[*_label(block.label if not i else ""), *row] for i, row in enumerate(rows)]


def _wrapped(text: str, room: int, most: int, ellipsis: str) -> list[str]:
    """Broken at blanks where there are any, else anywhere."""
    lines = [""]
    for word in text.split():
        for piece in chop_cells(word, room):
            joined = f"{lines[-1]} {piece}" if lines[-1] else piece
            if cell_len(joined) <= room:
                lines[-1] = joined
            else:
                lines.append(piece)
    if len(lines) > most:
        kept = lines[most - 1][: max(0, room - len(ellipsis))]
        lines = [*lines[: most - 1], f"{kept}{ellipsis}"]
    return lines


def _rule(title: str, width: int, ascii_only: bool) -> Span:
    """The title in a line; of one that is too long, its end."""
    line = "-" if ascii_only else "─"
    most = width - 6
    text = f"{line * 2} {title if len(title) <= most else title[len(title) - most :]} " if most > 0 else ""
    return text + line * (width - cell_len(text)), DIM


def _bar(step: int, steps: int, width: int, ascii_only: bool) -> list[Span]:
    done = width * min(step, steps) // max(1, steps)
    full, empty = ("#", "-") if ascii_only else ("━", "─")
    return [(full * done, GOOD), (empty * (width - done), DIM)]


def _label(label: str) -> list[Span]:
    return [(f" {label}".ljust(LABEL), DIM)]


def _length(spans: Iterable[Span]) -> int:
    return sum(cell_len(text) for text, _ in spans)


def _line(spans: Iterable[Span]) -> Iterable[Segment]:
    for text, style in spans:
        yield Segment(text, style)
    yield Segment.line()

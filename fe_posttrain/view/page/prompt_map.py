"""The map of prompts: how deep each lay in the reference, how deep it lies now."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from fe_posttrain.view.page.chart import svg
from fe_posttrain.view.page.depth import edges, seen
from fe_posttrain.view.page.markup import Html, data, table, tag
from fe_posttrain.view.page.scales import Scale, tick_label

LADDER = (4, 16, 64, 256, 1024, 4096)
COLOURS = tuple(f"c{i}" for i in range(1, 8))
_SHAPES = {"basin": "circle", "tail": "square", "undetermined": "diamond"}
_COUNTED = 4  # prompts at one spot from which their number is written
_REGIONS = ("basin", "tail", "beyond")
_WIDTH, _HEIGHT, _LEFT, _TOP, _SIDE = 560, 560, 58, 40, 462


def colours(names: Sequence[str]) -> dict[str, str]:
    """A class of the style sheet for each family; those past the seventh share one."""
    return {name: COLOURS[i] if i < len(COLOURS) else "c8" for i, name in enumerate(names)}


def prompt_map(points: Mapping, key: Mapping, message: str) -> Html:
    """Reference depth (x) against current depth (y), nats, of each prompt; those that fall together are one mark of
    greater area with their number in it. Colour: family. Shape: certified regime of the reference."""
    placed = places(points, key["delta"], key["alpha"])
    deepest = max([*(max(x.depth, y.depth) for x, y in placed), math.log(key["budget"])]) + 0.6
    least = min(0.0, min(min(x.depth, y.depth) for x, y in placed)) - 0.8
    across = Scale(least, deepest, _LEFT, _LEFT + _SIDE)
    up = Scale(least, deepest, _TOP + _SIDE, _TOP)
    families = colours(families_of(points))
    marks = Counter(
        (round(across(x.depth), 2), round(up(y.depth), 2), x.side, y.side, family or "", regime)
        for (x, y), family, regime in zip(placed, points["family"], points["regime"]["reference"], strict=True)
    )
    ordered = sorted(marks.items(), key=lambda item: (-item[1], item[0]))  # great ones below small ones
    inside = [
        _regions(key, across, up),
        _budgets(key["budget"], across, up),
        tag("line", x1=across.start, y1=up.start, x2=across.end, y2=up.end, class_="diagonal"),
        _quadrants(key["budget"], across, up),
        [_mark(*spot, count, families) for spot, count in ordered],
        [tag("text", n, x=spot[0], y=spot[1], dy=".35em", class_="count mid") for spot, n in ordered if n >= _COUNTED],
    ]
    plot = tag("g", inside, class_="plot map", **across.attributes("x"), **up.attributes("y"))
    return svg(_WIDTH, _HEIGHT, message, _axes(across, up), plot, class_="map")


def places(points: Mapping, delta: float, alpha: float) -> list[tuple]:
    """(reference, current) depth of each prompt."""
    sides = [
        [seen(c, n, delta, alpha) for c, n in zip(points["correct"][side], points["drawn"][side], strict=True)]
        for side in ("reference", "trained")
    ]
    return list(zip(*sides, strict=True))


def families_of(points: Mapping) -> list[str]:
    """Names of the families, in the order of the prompts."""
    return list(dict.fromkeys(name or "" for name in points["family"]))


def legend(points: Mapping) -> Html:
    """Families and shapes."""
    names = colours(families_of(points))
    keys = [tag("span", tag("i", class_=f"key dot {colour}"), name or "prompts") for name, colour in names.items()]
    regimes = dict.fromkeys(points["regime"]["reference"])
    for regime in regimes:
        glyph = {"circle": "●", "square": "■", "diamond": "◆"}.get(_SHAPES.get(regime), "▲")
        keys.append(tag("span", tag("i", glyph, class_="glyph"), f"reference {regime}"))
    keys.append(tag("span", tag("i", "○", class_="glyph"), "never solved: a bound"))
    return tag("div", keys, class_="legend")


def numbers(points: Mapping, key: Mapping) -> Html:
    """The prompts behind the map."""
    placed = places(points, key["delta"], key["alpha"])
    columns = [points["family"]]
    for side in ("reference", "trained"):
        columns += [points["correct"][side], points["drawn"][side], points["regime"][side]]
    rows = []
    for i, prompt in enumerate(points["prompt"]):
        cells = [column[i] for column in columns]
        before, now = placed[i]
        rows.append(
            [
                prompt,
                cells[0] or "",
                *(_depth(before), tag("span", data(cells[1]), " of ", data(cells[2])), cells[3]),
                *(_depth(now), tag("span", data(cells[4]), " of ", data(cells[5])), cells[6]),
            ]
        )
    side = ("depth", "correct", "regime")
    head = ["prompt", "family", *(f"reference {s}" for s in side), *(f"current {s}" for s in side)]
    return table(head, rows, texts=2)


def _depth(found) -> Html:
    sign = {0: "", 1: "≥ ", -1: "≤ "}[found.side]
    return tag("span", sign, data(found.depth, f"{found.depth:.2f}".replace("-", "−")))


def _regions(key: Mapping, across: Scale, up: Scale) -> list[Html]:
    """Stretches of either axis by regime, shaded so that they deepen where they cross."""
    basin, reach = edges(key["budget"], key["delta"])
    ends = (across.low, basin, reach, across.high)
    found = []
    for name, a, b in zip(_REGIONS, ends, ends[1:], strict=False):
        if b <= a:
            continue
        x, y = across(a), up(b)
        wide, high = across(b) - x, up(a) - y
        found.append(tag("rect", x=f"{x:.1f}", y=up.end, width=f"{wide:.1f}", height=_SIDE, class_=f"region {name}"))
        found.append(
            tag("rect", x=across.start, y=f"{y:.1f}", width=_SIDE, height=f"{high:.1f}", class_=f"region {name}")
        )
        label = "beyond reach" if name == "beyond" else name
        at_x, at_y = x + wide / 2, y + high / 2
        if wide > 44:
            found.append(tag("text", label, x=f"{at_x:.1f}", y=up.end - 22, class_="region-name mid"))
            turned = f"rotate(90 {across.end + 26:.1f} {at_y:.1f})"
            words = {"x": f"{across.end + 26:.1f}", "y": f"{at_y:.1f}", "transform": turned}
            found.append(tag("text", label, class_="region-name mid", **words))
    return found


def _budgets(primary: int, across: Scale, up: Scale) -> list[Html]:
    found = []
    for budget in sorted({*LADDER, primary}):
        place = math.log(budget)
        if not across.low < place < across.high:
            continue
        strong = " primary" if budget == primary else ""
        x, y = f"{across(place):.1f}", f"{up(place):.1f}"
        found.append(tag("line", x1=x, x2=x, y1=up.start, y2=up.end, class_=f"budget{strong}"))
        found.append(tag("line", x1=across.start, x2=across.end, y1=y, y2=y, class_=f"budget{strong}"))
        label = f"B = {budget:,}" if strong else f"{budget:,}"
        found.append(tag("text", label, x=x, y=up.end - 6, class_=f"tick mid{strong}"))
        turned = f"rotate(90 {across.end + 8:.1f} {y})"
        words = {"x": f"{across.end + 8:.1f}", "y": y, "transform": turned}
        found.append(tag("text", label, dy=".1em", class_=f"tick mid{strong}", **words))
    return found


def _quadrants(primary: int, across: Scale, up: Scale) -> list[Html]:
    reach = math.log(primary)
    right, over, under = f"{across.end - 8:.1f}", f"{up.end + 18:.1f}", up.start - 9
    left = across.start + 8
    found = [
        tag("text", "within reach, before and now", x=left, y=under, class_="quadrant"),
        tag("text", "fell out of reach", x=left, y=over, class_="quadrant"),
    ]
    if across.end - across(reach) > 96:
        found.append(tag("text", "came into reach", x=right, y=under, class_="quadrant end"))
        found.append(tag("text", "still out of reach", x=right, y=over, class_="quadrant end"))
    return found


def _axes(across: Scale, up: Scale) -> list[Html]:
    base, found = up.start, []
    for value in across.ticks(6):
        found.append(tag("text", tick_label(value), x=f"{across(value):.1f}", y=base + 18, class_="tick mid"))
        found.append(
            tag("text", tick_label(value), x=across.start - 8, y=f"{up(value):.1f}", dy=".34em", class_="tick end")
        )
    middle = (up.start + up.end) / 2
    found.append(
        tag("text", "depth in the reference, nats", x=(across.start + across.end) / 2, y=base + 42, class_="axis mid")
    )
    turned = f"rotate(-90 16 {middle})"
    found.append(tag("text", "depth now, nats", x=16, y=middle, transform=turned, class_="axis mid"))
    return found


def _mark(x: float, y: float, side_x: int, side_y: int, family: str, regime: str, count: int, families) -> Html:
    """One mark, hollow where a side never solved it; at a bound a tick points to where the truth may lie."""
    size = min(4.2 * math.sqrt(1 + 0.6 * (count - 1)), 14)
    hollow = " hollow" if 1 in (side_x, side_y) else ""
    words = f"mark {families[family]}{hollow}"
    many = f"{count} prompts" if count > 1 else "1 prompt"
    title = tag("title", f"{many}{f' of {family}' if family else ''}; reference: {regime}")
    pieces = [_shape(_SHAPES.get(regime, "triangle"), x, y, size, words, title, count)]
    if side_x:
        pieces.append(tag("line", x1=x + side_x * size, x2=x + side_x * (size + 4), y1=y, y2=y, class_=words))
    if side_y:
        pieces.append(tag("line", x1=x, x2=x, y1=y - side_y * size, y2=y - side_y * (size + 4), class_=words))
    return tag("g", pieces)


def _shape(shape: str, x: float, y: float, size: float, words: str, title: Html, count: int) -> Html:
    carried = {"class_": words, "data_count": count, "data_x": x, "data_y": y}
    if shape == "circle":
        return tag("circle", title, cx=x, cy=y, r=f"{size:.1f}", **carried)
    s = 0.9 * size
    corners = {
        "square": ((-s, -s), (s, -s), (s, s), (-s, s)),
        "diamond": ((0, -1.3 * s), (1.3 * s, 0), (0, 1.3 * s), (-1.3 * s, 0)),
        "triangle": ((0, -1.25 * s), (1.2 * s, 0.9 * s), (-1.2 * s, 0.9 * s)),
    }[shape]
    text = " ".join(f"{x + a:.1f},{y + b:.1f}" for a, b in corners)
    return tag("polygon", title, points=text, **carried)

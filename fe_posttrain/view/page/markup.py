"""HTML and SVG from Python: whatever is not markup already is text, and text is escaped."""

import math
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

LONG = 240  # characters from which a text is folded
_VOID = {"meta", "link", "br", "wbr"}


class Html(str):
    """A piece of markup; a plain `str` is text."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
        children: markup, text, numbers, or (nested) sequences of them; None is left out.
        attributes: `class_` is `class`, other underscores are hyphens; None is left out.
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{words}>")
    return Html(f"<{name}{words}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Html:
    """Markup of several pieces, one after the other."""
    found = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            found.append(child)
        elif isinstance(child, list | tuple):
            found.append(join(child))
        else:
            found.append(escape(str(child), quote=False))
    return Html("".join(found))


def shown(value: float) -> str:
    """A number for reading: whole ones in full, others to four digits."""
    if isinstance(value, bool) or value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return text.replace("e-0", "e-").replace("e+0", "e").replace("-", "−").replace("e−", "e-")


def data(value: float | None, text: str | None = None, **attributes: Any) -> Html:
    """A number that carries its full value; a dash where there is none."""
    if value is None:
        return Html("–")
    return tag("data", shown(value) if text is None else text, value=repr(value), **attributes)


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]], *, texts: int = 1, **attributes: Any) -> Html:
    """A table in a box of its own that scrolls sideways where it must; `texts` columns to the left are no numbers."""
    kind = ["text" if i < texts else None for i in range(len(head))]
    top = [tag("th", cell, scope="col", class_=kind[i]) for i, cell in enumerate(head)]
    body = []
    for row in rows:
        cells = [
            tag("th", row[0], scope="row", class_=kind[0]),
            *(tag("td", cell, class_=kind[i]) for i, cell in enumerate(row[1:], 1)),
        ]
        body.append(tag("tr", cells))
    inner = tag("table", tag("thead", tag("tr", top)), tag("tbody", body))
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label="table", **attributes)


def folded(summary: Any, *inside: Any, class_: str = "more") -> Html:
    return tag("details", tag("summary", summary), inside, class_=class_)


def long_text(text: str) -> Html:
    """A text as it is, with its line breaks; a long one shows its beginning and folds the whole."""
    if len(text) <= LONG:
        return tag("span", text or "(empty)", class_="words" if text else "words none")
    return folded(tag("span", f"{text[: LONG - 40]}…", class_="words"), tag("div", text, class_="words"), class_="long")


def section(name: str, title: str, *inside: Any) -> Html:
    """A stretch of the page under a heading."""
    return tag("section", tag("h2", title), inside, id=name)


def words(text: str) -> Html:
    """A text of the catalogue: `code` and *emphasis* as such."""
    parts = re.split(r"`([^`]+)`|(?<![\w*])\*(\w+)\*(?!\w)", text)
    return join(
        [tag(("", "code", "em")[i % 3], part) if i % 3 else part for i, part in enumerate(parts) if part is not None]
    )


def figure(title: Any, svg: Html, caption: Any, numbers: Html | None, *, class_: str | None = None) -> Html:
    """A drawing with its title above, its caption below and its numbers folded behind it."""
    behind = None if numbers is None else folded("Numbers", numbers)
    return tag(
        "figure",
        tag("div", title, class_="figure-title"),
        tag("div", svg, class_="drawing"),
        tag("figcaption", caption) if caption else None,
        behind,
        class_=class_,
    )

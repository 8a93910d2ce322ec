"""A page as a test reads it: its elements, the numbers that they carry, and positions turned back into values."""

import math
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "wbr", "img", "input"}


@dataclass
class Element:
    name: str
    words: dict[str, str | None]
    content: list["Element | str"] = field(default_factory=list)

    @property
    def inside(self) -> list["Element"]:
        return [one for one in self.content if isinstance(one, Element)]

    @property
    def text(self) -> str:
        return "".join(one for one in self.content if isinstance(one, str))

    def all(self, name: str | None = None) -> list["Element"]:
        found = [one for child in self.inside for one in (child, *child.all())]
        return [one for one in found if name in (None, one.name)]

    def whole_text(self) -> str:
        return "".join(one if isinstance(one, str) else one.whole_text() for one in self.content)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.stack = [Element("", {})]

    def handle_starttag(self, name, words):
        element = Element(name, dict(words))
        self.stack[-1].content.append(element)
        if name not in VOID:
            self.stack.append(element)

    def handle_endtag(self, name):
        assert self.stack.pop().name == name, f"</{name}> ends something else"

    def handle_data(self, text):
        self.stack[-1].content.append(text)


def read(page: str) -> Element:
    """The elements of a page; every one that begins must end."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert len(reader.stack) == 1
    return reader.stack[0]


@dataclass(frozen=True)
class Axis:
    """An axis of a drawing, by the attributes that it carries."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def of(cls, plot: Element, axis: str) -> "Axis":
        domain, ends = (map(float, plot.words[f"data-{axis}-{kind}"].split()) for kind in ("domain", "range"))
        return cls(*domain, *ends, plot.words[f"data-{axis}-scale"] == "log")

    def value(self, place: float) -> float:
        """The value at a position."""
        share = (place - self.start) / (self.end - self.start)
        if self.log:
            return self.low * (self.high / self.low) ** share
        return self.low + share * (self.high - self.low)

    def step(self, value: float) -> float:
        """How much half a pixel is worth at a value: on a drawing that is shown at its own size or larger."""
        worth = 0.5 / abs(self.end - self.start)
        return value * math.log(self.high / self.low) * worth if self.log else (self.high - self.low) * worth


def plots(page: Element) -> list[Element]:
    return [one for one in page.all("g") if one.words.get("class", "").startswith("plot")]


def points(path: Element) -> list[tuple[float, float]]:
    """Corners of a line."""
    return [tuple(map(float, pair.split(","))) for pair in path.words["d"].removeprefix("M").split("L")]

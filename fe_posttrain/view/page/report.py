"""report.html: one self-contained page that tells a person what a run did, in mid-run as well as at its end.

Nothing but the run folder is needed, and nothing is loaded when the page is opened: no script, no font, no image.
"""

from importlib.resources import files
from pathlib import Path

from fe_posttrain.view.page.energy import energy
from fe_posttrain.view.page.explained import explained
from fe_posttrain.view.page.health import health
from fe_posttrain.view.page.markup import Html, join, tag
from fe_posttrain.view.page.opening import opening
from fe_posttrain.view.page.pairs import pairs, rollouts
from fe_posttrain.view.page.story import over_time, prompts
from fe_posttrain.view.page.tracking import tracking
from fe_posttrain.view.reading import RunData
from fe_posttrain.whole_files import write_whole

NAME = "report.html"


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, whole or not at all: to `out`, or as report.html into its folder. Returns its path.

    Raises:
        ValueError: the folder holds no run.
        OSError: it cannot be written.
    """
    return write_page(out or run / NAME, report_page(RunData(run)))


def report_page(run: RunData) -> str:
    """The page of one run."""
    parts = (opening, energy, prompts, over_time, tracking, pairs, rollouts, health)
    body = join([part(run) for part in parts])
    return whole_page(run.name, join([body, explained(run, body)]))


def whole_page(title: str, body: Html) -> str:
    """An HTML document of its own, its style inside."""
    style = (files("fe_posttrain.view.page") / "style.css").read_text()
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: run report"),
        tag("link", rel="icon", href="data:,"),  # or the browser asks a server for one
        tag("style", Html(style)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', body)), lang='en')}\n"


def write_page(path: Path, text: str) -> Path:
    """Write a page whole or not at all."""
    write_whole(path, text)
    return path

"""Several runs on one page: their verdicts beside each other, and their curves in the same axes."""

from collections.abc import Sequence
from pathlib import Path

from fe_posttrain.view.page.chart import Frame, Line, chart, is_thinned, legend, numbers
from fe_posttrain.view.page.markup import Html, data, figure, join, section, table, tag
from fe_posttrain.view.page.opening import KEYS, TERMS, objective, spoken, state
from fe_posttrain.view.page.prompt_map import COLOURS
from fe_posttrain.view.page.report import whole_page, write_page
from fe_posttrain.view.page.series import caption, line, message, unit_of
from fe_posttrain.view.reading import RunData
from fe_posttrain.view.support import shown_end, shown_value
from fe_posttrain.view.text import ceiling, floor

_SHOWN = (  # key -> title, whether 0 belongs on the axis
    ("free_energy/total", "F", False),
    ("free_energy/gap", "The gap to the optimum", True),
    ("free_energy/kl", "KL to the reference", True),
    ("reward", "Reward", False),
    ("support/gain", "Gain, at probes", True),
    ("support/elicited_low", "Elicited, certified", True),
    ("support/created_low", "Created, certified", True),
    ("support/ledger_in", "Certified by the ledger", True),
    ("entropy", "Entropy", True),
    ("grad_norm", "Norm of the gradient", True),
)


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write a page that compares runs, whole or not at all; returns `out`.

    Raises:
        ValueError: a folder holds no run, or there are more runs than colours that can be told apart.
        OSError: the page cannot be written.
    """
    if len(runs) > len(COLOURS):
        raise ValueError(
            f"{len(runs)} runs: {len(COLOURS)} colours can be told apart; name {len(COLOURS)} runs or fewer"
        )
    return write_page(out, comparison_page([RunData(run) for run in runs]))


def comparison_page(runs: Sequence[RunData]) -> str:
    """The page of these runs."""
    names = _names(runs)
    body = join([_header(runs, names), _verdicts(runs, names), _energies(runs, names), _curves(runs, names)])
    return whole_page(", ".join(names), body)


def _names(runs: Sequence[RunData]) -> list[str]:
    """Names that differ: where two are the same, with the folder they lie in."""
    plain = [run.name for run in runs]
    told = [str(run.path) if plain.count(name) > 1 else name for run, name in zip(runs, plain, strict=True)]
    return [f"{name} ({i})" if told.count(name) > 1 else name for i, name in enumerate(told, 1)]


def _header(runs: Sequence[RunData], names: Sequence[str]) -> Html:
    rows = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        done = max((row["step"] for row in [*run.metrics, *run.events]), default=0)
        label = tag("span", tag("i", class_=f"key dot {COLOURS[i]}"), name)
        how = tag("span", data(done), " of ", data(run.steps), f", {state(run)}")
        model = run.recipe.get("model_name_or_path") or ""
        rows.append([label, tag("code", objective(run.recipe)), model, how])
    return tag(
        "header",
        tag("p", "Run report", class_="eyebrow"),
        tag("h1", data(len(runs)), " runs compared"),
        table(["run", "objective", "model", "steps"], rows, texts=4),
    )


def _verdicts(runs: Sequence[RunData], names: Sequence[str]) -> Html | None:
    probed = [(run.support, name) for run, name in zip(runs, names, strict=True) if run.support]
    if not probed:
        return None
    rows = []
    for report, name in probed:
        cells: list[Html] = []
        for term in TERMS:
            found = report["verdict"][term]
            value = data(found["value"], shown_value(term, found).replace("-", "−"), data_key=KEYS[term])
            cells.append(tag("span", value, tag("small", _bounds(found), class_="bounds")))
        rows.append([name, data(report["key"]["budget"]), *cells])
    said = [tag("p", tag("b", name, ". "), " ".join(spoken(report["sentence"])[:2])) for report, name in probed]
    return section(
        "verdict",
        "Verdicts, percentage points",
        _keys_differ([report["key"] for report, _ in probed]),
        table(["run", "B", *TERMS], rows),
        tag("div", said, class_="said"),
    )


def _bounds(term: dict) -> list:
    """The interval of a term, where it has one; ends rounded towards caution."""
    if term["low"] is None and term["high"] is None:
        return []
    low = data(term["low"], shown_end(term["low"], floor).replace("-", "−"))
    return [low, " to ", data(term["high"], shown_end(term["high"], ceiling).replace("-", "−"))]


def _keys_differ(keys: Sequence[dict]) -> Html | None:
    differ = [name for name in keys[0] if len({str(key.get(name)) for key in keys}) > 1]
    if not differ:
        return None
    words = f"These verdicts are relative to different keys ({', '.join(differ)}): their numbers do not compare."
    return tag("p", words, class_="failed lead")


def _energies(runs: Sequence[RunData], names: Sequence[str]) -> Html | None:
    """Start and end of F and its terms, from summaries."""
    terms = [t for t in ("total", "gap", "reward", "demonstration", "kl") for run in runs if t in _ends(run)]
    shown = list(dict.fromkeys(terms))
    if not shown:
        return None
    rows = []
    for run, name in zip(runs, names, strict=True):
        ends = _ends(run)
        cells = [tag("span", data(ends[t]["start"]), " → ", data(ends[t]["end"])) if t in ends else "–" for t in shown]
        rows.append([name, *cells])
    note = "Mean over the first and over the last tenth of the logged steps, of finished runs."
    return section("energy", "Free energy and its terms", table(["run", *shown], rows), tag("p", note, class_="note"))


def _ends(run: RunData) -> dict[str, dict[str, float]]:
    return run.summary.get("free_energy", {})


def _curves(runs: Sequence[RunData], names: Sequence[str]) -> Html | None:
    figures = []
    last = max(run.steps for run in runs)
    for key, title, zero in _SHOWN:
        found = [
            line(run, key, name, colour=COLOURS[i], dotted=len(run.series(key)[1]) <= 30)
            for i, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
        lines: list[Line] = [one for one in found if one is not None]
        if not lines:
            continue
        frame = Frame(y_label=unit_of(key), x=(0, last), zero=True, holds=(0,) if zero else ())
        thin = "At most 500 points of a line are drawn." if is_thinned(lines) else None
        drawing = join([legend(lines), chart(lines, frame, message(title, lines))])
        words = join([caption([Line(key, title, (), ())]), thin])
        figures.append(figure(title, drawing, words, numbers(lines)))
    return section("curves", "Over steps", tag("div", figures, class_="figures")) if figures else None

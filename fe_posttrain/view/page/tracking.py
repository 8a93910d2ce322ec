"""What tracking saw while the run trained: displacement and its closure, the ledger, and the rest of support."""

from collections.abc import Mapping

from fe_posttrain.view import catalogue
from fe_posttrain.view.page.chart import Frame, Line, chart
from fe_posttrain.view.page.chart import numbers as chart_numbers
from fe_posttrain.view.page.markup import Html, data, figure, join, section, tag, words
from fe_posttrain.view.page.series import caption, line, lines_of, logged, message, over_steps, smalls
from fe_posttrain.view.reading import RunData

_REST = (
    "support/correct",
    "support/zero_hit_prompts",
    "support/excess_kl",
    "support/outside_mass",
    "support/kl_efficiency",
    "support/probe_kl",
    "support/gap_jarzynski",
    "support/gap_cumulant",
    "support/labels/*",
    "support/jaccard_low",
    "support/jaccard_high",
)


def tracking(run: RunData) -> Html | None:
    """The section; None for a run that was not tracked."""
    figures = [one for one in (_displacement(run), _ledger(run)) if one is not None]
    rest = smalls(run, logged(run, *_REST))
    if not figures and rest is None:
        return None
    shown = tag("div", figures, class_="figures") if figures else None
    return section("tracking", "While it trained", shown, rest)


def _displacement(run: RunData) -> Html | None:
    found = run.summary.get("support", {}).get("displacement") or {}
    windows = [w for w in found.get("windows", ()) if w.get("value") is not None]
    key = "support/displacement"
    if windows:
        at, values = [w["step"] for w in windows], [w["value"] for w in windows]
        ends = {
            name: [None if w["se"] is None else w["value"] + sign * w["se"] for w in windows]
            for name, sign in (("low", -1), ("high", 1))
        }
        one = Line(key, "displacement", at, values, dotted=True, **ends)
    else:
        one = line(run, key, "displacement", dotted=True)
    if one is None:
        return None
    frame = Frame(y_label=catalogue.named(key).unit, x=(0, run.steps), zero=True, holds=(0,))
    bars = "Bars: one standard error either way. " if windows else None
    told = join([caption([one]), bars, _rms(run, found), _closure(run.support)])
    drawing = chart([one], frame, message("Displacement", [one]))
    return figure("How far the updates moved it", drawing, told, chart_numbers([one]))


def _rms(run: RunData, found: Mapping) -> Html | None:
    value = found.get("rms")
    if value is None:
        _, logged_values = run.series("support/displacement_rms")
        value = logged_values[-1] if logged_values else None
    return None if value is None else join(["Root mean square over windows: ", data(value), " nats. "])


def _closure(report: Mapping) -> Html | None:
    check = report.get("checks", {}).get("closure")
    if check is None:
        return None
    error = join([", standard error ", data(check["se"])]) if check.get("se") is not None else None
    meaning = catalogue.named("support/closure").meaning
    return join(["Closure ", data(check["value"]), " nats", error, f" ({check['verdict']}): ", words(meaning), "."])


def _ledger(run: RunData) -> Html | None:
    lines = lines_of(run, {"support/ledger_in": ("certified in", "elicited", False)})
    if not lines:
        return None
    drawn = over_steps(run, "What the ledger certified", lines, holds=(0, 1))
    kept = run.summary.get("support", {}).get("ledger")
    return drawn if kept is None else tag("div", drawn, _counts(kept))


def _counts(kept: Mapping) -> Html:
    certified = kept["training_prompts_in"]
    many = ["void, as the BAR check failed" if certified is None else data(certified)]
    return tag(
        "p",
        "Training prompts certified in: ", many, " of ", data(kept["training_prompts_drawn"]), " drawn; ",
        data(kept["zero_hit_prompts"]), " of them never solved; ", data(kept["bytes_per_prompt"]), " bytes a prompt.",
        class_="note",
    )  # fmt: skip

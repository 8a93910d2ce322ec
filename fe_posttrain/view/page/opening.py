"""The first screen: what the run was, the verdict with its bounds and checks, and one figure."""

import re
from collections.abc import Mapping
from typing import Any

from fe_posttrain.view import catalogue, weights
from fe_posttrain.view.page.bars import gain_bar
from fe_posttrain.view.page.energy import total_lines
from fe_posttrain.view.page.markup import Html, data, figure, join, table, tag
from fe_posttrain.view.page.series import over_steps
from fe_posttrain.view.reading import RunData
from fe_posttrain.view.support import meanings, shown_draws, shown_end, shown_value
from fe_posttrain.view.text import ceiling, floor

TERMS = ("gain", "elicited", "created", "undetermined", "lost")
KEYS = {name: f"support/{name}{'' if name in ('gain', 'undetermined') else '_low'}" for name in TERMS}
_MARKS = {"passed": "✓", "failed": "✗", "not checked": "–"}


def opening(run: RunData) -> Html:
    """Header and verdict; without support F from start to end."""
    body = _verdict(run) if run.support else _energy(run)
    return join([_header(run), tag("section", body, id="verdict", class_="opening")])


def objective(recipe: Mapping[str, Any]) -> str:
    """F of a resolved recipe in one line."""
    parts = []
    if weights.is_used(recipe, "reward_energy_weight"):
        parts.append(f"{weights.shown(recipe, 'reward_energy_weight')} E[−reward]")
    if weights.is_used(recipe, "demonstration_energy_weight"):
        parts.append(f"{weights.shown(recipe, 'demonstration_energy_weight')} E_demonstrations[−log π]")
    if weights.is_used(recipe, "beta"):
        coefficient = weights.shown(recipe, "beta")
        if recipe.get("kl_sampler") == "demonstrations":
            parts.append(f"{coefficient}/2 E_demonstrations[(log π − log reference)²]")
        else:
            parts.append(f"{coefficient} KL(π ‖ reference)")
    return "F(π) = " + " + ".join(parts)


def state(run: RunData) -> str:
    """How the run stands, in a word: finished, stopped, failed, or unfinished where nothing says that it ended."""
    ended = run.events_named("end")
    return ended[-1]["status"] if ended else "finished" if run.summary else "unfinished"


def _header(run: RunData) -> Html:
    done = max((row["step"] for row in [*run.metrics, *run.events]), default=0)
    facts = [
        tag("span", run.recipe.get("model_name_or_path") or "model"),
        tag("span", "step ", data(done), " of ", data(run.steps), f", {state(run)}"),
    ]
    if run.metrics:
        facts.append(tag("span", duration(run.metrics[-1]["seconds"])))
    return tag(
        "header",
        tag("p", "Run report", class_="eyebrow"),
        tag("h1", run.name),
        tag("p", tag("code", objective(run.recipe)), class_="objective"),
        tag("p", facts, class_="facts"),
    )


def duration(seconds: float) -> Html:
    """A time in its largest fitting unit."""
    size, unit = (3600, "h") if seconds >= 5400 else (60, "min") if seconds >= 90 else (1, "s")
    return data(seconds, f"{seconds / size:.1f} {unit}")


def _verdict(run: RunData) -> list[Html]:
    report = run.support
    claim, rest, key = spoken(report["sentence"])
    budget = report["key"]["budget"]
    message = "The gain and its parts in percentage points: " + ", ".join(
        f"{name} {shown_value(name, report['verdict'][name])}" for name in TERMS
    )
    drawn = figure(
        tag("span", "Where the gain came from, at B = ", data(budget)),
        gain_bar(report["verdict"], message),
        None,
        None,
        class_="hero",
    )
    probed = report.get("step")
    when = [tag("span", "Probed at step ", data(probed), ". ")] if probed is not None else []
    return [
        tag("p", claim, class_="claim"),
        tag("p", rest, class_="rest") if rest else None,
        tag("p", f"Tracking stopped after this probe: {off}", class_="rest failed") if (off := _off(run)) else None,
        tag("div", tag("div", drawn, checks(report)), terms_table(report["verdict"], budget), class_="split"),
        tag("p", when, key, " ", draws(report), class_="key-line"),
    ]


def spoken(sentence: str) -> tuple[str, str, str]:
    """The sentence of a verdict in three: the claim, what was lost, what it is relative to."""
    said, middle, key = sentence.partition(" This is relative to ")
    claim, *rest = re.split(r"(?<=\.)\s+(?=[A-Z])", said, maxsplit=1)
    return claim, " ".join(rest), f"{middle.strip()} {key}".strip()


def terms_table(verdict: Mapping[str, Mapping], budget: int) -> Html:
    """Terms with their bounds; certified ends are rounded towards caution."""
    meaning, rows = meanings(budget), []
    for name in TERMS:
        term = verdict[name]
        value = data(term["value"], _minus(shown_value(name, term)), data_key=KEYS[name])
        ends = [
            data(term[end], _minus(shown_end(term[end], rounded)))
            for end, rounded in (("low", floor), ("high", ceiling))
        ]
        label = [tag("i", class_=f"key bar {name}"), name, tag("small", meaning[name])]
        rows.append([tag("span", label, class_="term"), value, *ends])
    return table(["points", "value", "low", "high"], rows)


def checks(report: Mapping) -> Html | None:
    """What was checked, and how that came out."""
    found = []
    for name, check in report["checks"].items():
        verdict = check["verdict"]
        why = f"{catalogue_words(name)}: {check['why']}" if check.get("why") else None
        named = {"bar": "BAR"}.get(name, name.replace("_", " "))
        mark = tag("i", _MARKS.get(verdict, "–"), class_="sign")
        found.append(tag("li", mark, f" {named} {verdict}", title=why, class_=verdict.replace(" ", "-")))
    return tag("ul", found, class_="checks", aria_label="checks") if found else None


def catalogue_words(check: str) -> str:
    """The meaning of the metric that a check is about."""
    metric = catalogue.find(f"support/{'bar_df' if check == 'bar' else check}")
    return metric.meaning if metric else check


def draws(report: Mapping) -> str:
    sides = (("reference", "reference"), ("trained", "trained model"))
    each = "; ".join(f"{shown_draws(report['draws'][side])} of the {words}" for side, words in sides)
    return f"{report['prompts']} probe prompts; draws of each: {each}."


def _energy(run: RunData) -> list[Html]:
    """Where nothing was probed: start and end of F and its terms, and F over steps."""
    why = _off(run)
    if run.recipe.get("support") is False:
        told = "Support was not tracked (support: false), so this run says nothing about elicited or created."
    elif why:
        told = f"Support was not tracked to the end: {why}"
    else:
        told = "No probe yet: the verdict comes with the first one."
    lines = total_lines(run)
    drawn = over_steps(run, "Free energy", lines, zero=True) if lines else None
    return [
        tag("p", _energy_words(run), class_="claim"),
        tag("p", told, class_="rest"),
        tag("div", drawn, ends_table(run), class_="split") if drawn else None,
    ]


def _off(run: RunData) -> str | None:
    """Why support was no longer tracked; None where it was to the end."""
    told = run.events_named("support_off")
    return told[-1].get("reason") if told else run.summary.get("support", {}).get("off")


def ends_table(run: RunData) -> Html:
    """F and its terms at the first and the last row."""
    rows = []
    for name in ("total", "optimum", "gap", "reward", "demonstration", "kl", "demonstration_penalty", "beta"):
        key = f"free_energy/{name}"
        _, values = run.series(key)
        if values:
            label = tag("span", name, tag("small", catalogue.named(key).unit), class_="term")
            rows.append([label, data(values[0], data_key=key), data(values[-1])])
    return table(["free energy", "first row", "last row"], rows)


def _energy_words(run: RunData) -> Html:
    _, total = run.series("free_energy/total")
    if not total:
        return Html("Nothing is logged yet.")
    verb = "fell" if total[-1] < total[0] else "rose" if total[-1] > total[0] else "stayed"
    parts: list[Any] = [f"The free energy {verb} from ", data(total[0]), " to ", data(total[-1])]
    for name, words in (("gap", "; its gap to the optimum is "), ("kl", "; the KL to the reference is ")):
        _, values = run.series(f"free_energy/{name}")
        if values:
            parts += [words, data(values[-1]), " nats a sequence" if name == "kl" else ""]
    return tag("span", parts, ".")


def _minus(text: str) -> str:
    return text.replace("-", "−")

"""Completions to read: reference beside policy where the support changed, and what training drew last."""

from collections.abc import Mapping

from fe_posttrain.view.page.markup import Html, data, long_text, section, table, tag
from fe_posttrain.view.reading import RunData

MOST = 8  # pairs of a kind
_CUT = 160  # characters of a prompt that a report keeps


def pairs(run: RunData) -> Html | None:
    """Prompts that entered and left the support, both sides' completions beside each other; where none did, those
    that rose and fell most. None without a probe whose samples are there."""
    if not run.probes or "points" not in run.probes[-1]["report"]:
        return None
    event = run.probes[-1]
    points = event["report"]["points"]
    drawn = _by_prompt(run.samples(event))
    if not drawn:
        return None
    support = points.get("support", {"start": [], "now": []})
    changes = list(zip(support["start"], support["now"], strict=True))
    entered = [i for i, change in enumerate(changes) if change == ("out", "in")]
    left = [i for i, change in enumerate(changes) if change == ("in", "out")]
    rises = _rises(points)
    entered.sort(key=lambda i: -rises[i])
    left.sort(key=lambda i: rises[i])
    up = sorted((i for i, rise in enumerate(rises) if rise > 0), key=lambda i: -rises[i])
    down = sorted((i for i, rise in enumerate(rises) if rise < 0), key=lambda i: rises[i])
    blocks = [
        _block("Entered the support", entered, points, drawn)
        or _block("No prompt is certified to have entered the support; these rose most", up, points, drawn),
        _block("Left the support", left, points, drawn)
        or _block("No prompt is certified to have left the support; these fell most", down, points, drawn),
    ]
    words = (
        "Of each prompt one completion of the reference and one of the trained model, of the kind, correct or wrong, "
        "that the model shows more often. Entered: certified out at the start and in now, at the run's B; left: the "
        "reverse."
    )
    return section("pairs", "Completions, side by side", tag("p", words, class_="lead"), blocks)


def rollouts(run: RunData) -> Html | None:
    """The newest rollouts that the run kept."""
    events = [event for event in run.events_named("rollouts") if event.get("samples")]
    rows = run.samples(events[-1]) if events else []
    if not rows:
        return None
    body = [
        [
            long_text(row["prompt"] or ""),
            long_text(row["completion"] or ""),
            data(row["energy"]),
            data(row["log_ratio"]),
        ]
        for row in rows
    ]
    head = ["prompt", "completion", "energy", "ln(π/ref)"]
    words = (
        "Some rollouts of step ",
        data(events[-1]["step"]),
        ". Energy is minus the weighted reward; ln(π/ref) is of the whole completion, nats.",
    )
    return section("rollouts", "Latest rollouts", tag("p", words, class_="lead"), table(head, body, texts=2))


def _by_prompt(samples: list[dict]) -> dict[tuple[str, str], dict[bool, dict]]:
    """(prompt as the report has it, model) -> a correct and a wrong completion, where there is one."""
    found: dict[tuple[str, str], dict[bool, dict]] = {}
    for row in samples:
        line = " ".join((row["prompt"] or "").split())
        line = line if len(line) <= _CUT else f"{line[: _CUT - 1]}…"
        found.setdefault((line, row["model"]), {}).setdefault(bool(row["correct"]), row)
    return found


def _rises(points: Mapping) -> list[float]:
    sides = [
        [c / n for c, n in zip(points["correct"][side], points["drawn"][side], strict=True)]
        for side in ("reference", "trained")
    ]
    return [after - before for before, after in zip(*sides, strict=True)]


def _block(title: str, chosen: list[int], points: Mapping, drawn: Mapping) -> Html | None:
    """Pairs of these prompts; None where there are none."""
    kept = [i for i in chosen if (points["prompt"][i], "policy") in drawn][:MOST]
    if not kept:
        return None
    of = tag("small", " ", data(len(kept)), " of ", data(len(chosen)), " shown")
    return tag("div", tag("h3", title, of), tag("div", [_pair(i, points, drawn) for i in kept], class_="pairs"))


def _pair(i: int, points: Mapping, drawn: Mapping) -> Html:
    prompt, family = points["prompt"][i], points["family"][i]
    asked = drawn[prompt, "policy"]
    whole = next(iter(asked.values()))["prompt"]
    head = tag("div", long_text(whole), tag("small", family) if family else None, class_="asked")
    sides = [_side(i, points, drawn, *names) for names in (("reference", "reference"), ("trained", "policy"))]
    return tag("article", head, tag("div", sides, class_="two"))


def _side(i: int, points: Mapping, drawn: Mapping, side: str, model: str) -> Html:
    correct, total = points["correct"][side][i], points["drawn"][side][i]
    kinds = drawn.get((points["prompt"][i], model), {})
    row = kinds.get(2 * correct >= total) or next(iter(kinds.values()), None)
    shares = tag("small", data(correct), " of ", data(total), " correct")
    if row is None:
        return tag("div", tag("p", model, shares, class_="who"), tag("p", "none was kept", class_="none"))
    mark = tag("i", "✓ correct" if row["correct"] else "✗ wrong", class_="sign good" if row["correct"] else "sign bad")
    return tag("div", tag("p", tag("span", model), shares, mark, class_="who"), long_text(row["completion"] or ""))

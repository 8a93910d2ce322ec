"""What became of the prompts: the map, the flow between regimes, families, the verdict over time, attribution."""

import math
from collections.abc import Mapping

from fe_posttrain.view.page import flow, prompt_map
from fe_posttrain.view.page.bars import columns
from fe_posttrain.view.page.chart import Frame, Line, chart, legend
from fe_posttrain.view.page.chart import numbers as chart_numbers
from fe_posttrain.view.page.markup import Html, data, figure, join, section, table, tag
from fe_posttrain.view.page.opening import KEYS, TERMS
from fe_posttrain.view.page.series import caption, line, logged, message, over_steps
from fe_posttrain.view.reading import RunData
from fe_posttrain.view.support import shown_value


def prompts(run: RunData) -> Html | None:
    """Map, flow, calls at each probe, families; None before the first probe."""
    points = run.support.get("points")
    if not points:
        return None
    figures = [_flow(points), _calls(run)]
    return section(
        "prompts",
        "What became of the prompts",
        _map(points, run.support["key"]),
        tag("div", figures, class_="figures"),
        _families(run.support),
    )


def over_time(run: RunData) -> Html | None:
    """The verdict at each probe, exact p where a testbed knows it, and the attribution curve."""
    if not run.probes:
        return None
    figures = [_verdicts(run), _exact(run), _attribution(run.support)]
    return section("time", "The verdict over time", tag("div", figures, class_="figures"))


def _map(points: Mapping, key: Mapping) -> Html:
    reach = math.log(key["budget"])
    placed = prompt_map.places(points, key["delta"], key["alpha"])
    came = sum(1 for before, now in placed if before.depth > reach >= now.depth)
    fell = sum(1 for before, now in placed if before.depth <= reach < now.depth)
    told = f"Map of {len(placed)} prompts, depth in the reference against depth now, as drawn: {came} came within "\
           f"reach of B = {key['budget']} draws and {fell} fell out of it"  # fmt: skip
    words = join([
        "Depth is the ln of the number of draws that show a correct completion with probability 1 − delta: ",
        tag("i", "D = ln( ln(1/delta) / −ln(1 − p) )"), ", with p = correct / drawn as it was seen. On the diagonal "
        "nothing changed; below it a prompt got easier. Lines mark budgets (D = ln B), the strong ones the run's own. "
        "A side that solved a prompt never (hollow) or always stands at the depth of its bound at level ",
        data(key["alpha"]), ", 1 − alpha^(1/N) or alpha^(1/N), and a tick points to where the truth may lie: at least, "
        "or at most, this deep. Numbers count prompts that "
        "fall together. A description of the draws; what is certified is in the verdict and in the regimes.",
    ])  # fmt: skip
    words = join([prompt_map.legend(points), words])
    drawing = prompt_map.prompt_map(points, key, told)
    return figure("The map of prompts", drawing, words, prompt_map.numbers(points, key), class_="wide-figure")


def _flow(points: Mapping) -> Html:
    moved = flow.counts(points)
    told = "; ".join(f"{n} prompts {a} to {b}" for (a, b), n in moved.most_common())
    words = (
        "Certified regimes, left of the reference and right of the model as it is now. Undetermined is a full answer: "
        "the draws do not settle it. It is no movement by itself, as the two sides have different numbers of draws."
    )
    return figure("From regime to regime", flow.flow(points, told), words, flow.numbers(points))


def _calls(run: RunData) -> Html:
    rounds = [event["report"] for event in run.probes]
    at = [event["step"] for event in run.probes]
    parts = {name: [r["calls"]["trained"][name] for r in rounds] for name in flow.ORDER}
    parts = {name: counts for name, counts in parts.items() if any(counts)}
    keys = [tag("span", tag("i", class_=f"key bar {name}"), name) for name in parts]
    told = "Prompts in each regime at each probe; the last: " + ", ".join(f"{c[-1]} {n}" for n, c in parts.items())
    drawing = join([tag("div", keys, class_="legend"), columns(at, parts, run.steps, told, "prompts")])
    rows = [[data(step), *(data(counts[i]) for counts in parts.values())] for i, step in enumerate(at)]
    words = caption([Line(f"support/calls/trained/{next(iter(parts))}", "calls", at, at)])
    return figure("Regimes at each probe", drawing, words, table(["step", *parts], rows, texts=0))


def _families(report: Mapping) -> Html | None:
    if not report.get("families"):
        return None
    rows = [
        [
            name,
            data(part["prompts"]),
            *(data((t := part["verdict"][term])["value"], shown_value(term, t).replace("-", "−")) for term in TERMS),
        ]
        for name, part in report["families"].items()
    ]
    words = "Percentage points; each line holds at alpha by itself. elicited, created and lost are lower ends."
    head = tag("h3", "Families")
    return join([head, table(["family", "prompts", *TERMS], rows), tag("p", words, class_="note")])


def _verdicts(run: RunData) -> Html:
    at = [event["step"] for event in run.probes]
    terms = [event["report"]["verdict"] for event in run.probes]
    gain = [t["gain"] for t in terms]
    ends = {end: [g[end] for g in gain] for end in ("low", "high")}
    lines = [Line(KEYS["gain"], "gain", at, [g["value"] for g in gain], "gain", dotted=True, **ends)]
    for name in ("elicited", "created", "lost"):
        lines.append(Line(KEYS[name], f"{name}, low", at, [t[name]["low"] for t in terms], name, dotted=True))
    frame = Frame(y_label="points", x=(0, run.steps), zero=True, holds=(0,))
    words = join([caption(lines), "Bars: the interval of the gain. Each probe holds by itself, not jointly."])
    drawing = join([legend(lines), chart(lines, frame, message("Verdict over time", lines))])
    return figure("Verdict at each probe", drawing, words, chart_numbers(lines))


def _exact(run: RunData) -> Html | None:
    names = prompt_map.colours([key.removeprefix("testbed/p/") for key in logged(run, "testbed/p/*")])
    lines = [line(run, f"testbed/p/{name}", name, colour=colour) for name, colour in names.items()]
    lines = [one for one in lines if one is not None]
    return over_steps(run, "Exact probability of a correct completion", lines, holds=(0, 1))


def _attribution(report: Mapping) -> Html | None:
    shares = [(row["budget"], row["share"]) for row in report["attribution"] if row["share"] is not None]
    if not shares:
        return None
    budgets, values = zip(*shares, strict=True)
    own, half = report["key"]["budget"], report["b50"]
    lines = [Line("attribution", "A(B)", budgets, values, "elicited", dotted=True)]
    ticks = [b for b in budgets if len(budgets) <= 7 or b != own]
    rules = [(own, f"the run's B = {own:,}")]
    span = (min(budgets) / 2, max(budgets) * 2)
    frame = Frame("draws B of the reference", "share of the gain", span, ticks, log_x=True, holds=(0, 1), rules=rules)
    if half is not None:
        known = join(["Half of the gain is within ", data(half), " draws (B_50). "])
    elif report.get("b50_above"):
        known = join(["Not even ", data(report["b50_above"]), " draws explain half of it (B_50). "])
    else:
        known = None
    words = join([
        "Share of what was gained that B draws of the reference and the verifier would have shown: A(B) = elicited / "
        "(elicited + created). ", known, "A description with probabilities as they were drawn, no claim: plain shares "
        "invent creation.",
    ])  # fmt: skip
    drawing = chart(lines, frame, message("Share of the gain by budget", lines))
    return figure("How many draws explain the gain", drawing, words, chart_numbers(lines, "B"))

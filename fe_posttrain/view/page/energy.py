"""Free energy against its optimum, its terms, the KL and beta."""

from fe_posttrain.view.page.chart import Line
from fe_posttrain.view.page.markup import Html, data, join, section, tag
from fe_posttrain.view.page.series import line, lines_of, over_steps
from fe_posttrain.view.reading import RunData


def total_lines(run: RunData) -> list[Line]:
    """F and, where it is known, its optimum; evaluation's F as dots."""
    found = lines_of(
        run,
        {"free_energy/total": ("F", "c1", False), "free_energy/optimum": ("optimum F*", "c2", True)},
    )
    judged = line(run, "eval_free_energy/total", "F, evaluation", colour="c3", dotted=True)
    return [*found, judged] if judged else found


def energy(run: RunData) -> Html | None:
    """The section; None where no F was logged."""
    lines = total_lines(run)
    if not lines:
        return None
    terms = lines_of(
        run,
        {
            "free_energy/reward": ("reward term", "c3", False),
            "free_energy/demonstration": ("demonstration term", "c4", False),
        },
    )
    divergence = lines_of(run, {"free_energy/kl": ("KL", "c1", False)})
    penalty = lines_of(run, {"free_energy/demonstration_penalty": ("l²/2", "c1", False)})
    figures = [
        over_steps(run, "F against its optimum" if len(lines) > 1 else "F", lines, zero=True),
        over_steps(run, "F on the probe prompts, and what its optimum can be", _probed(run), zero=True),
        over_steps(run, "The gap to the optimum", lines_of(run, {"free_energy/gap": ("gap", "c1", False)}),
                   zero=True, holds=(0,)),
        over_steps(run, "Terms of F", terms, zero=True) if len(terms) > 1 or divergence or penalty else None,
        over_steps(run, "KL to the reference", divergence, holds=(0,)),
        over_steps(run, "Squared log-ratio of demonstrations, halved", penalty, holds=(0,)),
        _beta(run),
    ]  # fmt: skip
    return section("energy", "Free energy", _words(run), tag("div", figures, class_="figures"))


def _probed(run: RunData) -> list[Line]:
    """F of each probe, and both ends of its optimum."""
    found = [
        line(run, "support/free_energy", "F on probes", colour="c1", dotted=True),
        line(run, "support/optimum_high", "F* at most", colour="c2", dotted=True, dashed=True),
        line(run, "support/optimum_low", "F* at least", colour="c2", dotted=True, dashed=True),
    ]
    return [one for one in found if one is not None]


def _beta(run: RunData) -> Html | None:
    _, values = run.series("free_energy/beta")
    if len(set(values)) < 2:
        return None
    return over_steps(run, "The temperature beta", lines_of(run, {"free_energy/beta": ("beta", "c1", False)}))


def _words(run: RunData) -> Html:
    parts = ["F is minimised; lower is better. "]
    _, beta = run.series("free_energy/beta")
    if len(set(beta)) == 1:
        rest = " energy units a nat throughout. " if beta[0] else ": no KL term, and no optimum that is known. "
        parts.append(join(["Beta is ", data(beta[0]), rest]))
    if run.summary.get("free_energy"):
        parts.append("Mean over the first and over the last tenth of the logged steps: ")
        parts.append([[", " if i else "", _ends(*item)] for i, item in enumerate(run.summary["free_energy"].items())])
    return tag("p", parts, class_="lead")


def _ends(name: str, ends: dict[str, float]) -> Html:
    words = {
        "total": "F",
        "reward": "reward term",
        "demonstration": "demonstration term",
        "kl": "KL",
        "demonstration_penalty": "penalty on demonstrations",
    }.get(name, name)
    return tag("span", f"{words} ", data(ends["start"]), " → ", data(ends["end"]), class_="pair")

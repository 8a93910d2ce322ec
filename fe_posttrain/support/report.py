"""The report: what every JSON of a support measurement holds, on its way to files, terminals and dashboards.

`report` puts together what was computed elsewhere; `report_of_counts` computes everything from two sets of counts.
README.md beside this file explains each number.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fe_posttrain.support.attribution import LARGEST, attributed_share, half_gain_budget
from fe_posttrain.support.budgets import Key, ladder_with, threshold
from fe_posttrain.support.calls import Evidence, counts_by_regime, regimes
from fe_posttrain.support.counts import Counts, aligned
from fe_posttrain.support.population import npmle
from fe_posttrain.support.sightings import null_floor, sightings
from fe_posttrain.support.verdict import Term, Verdict, verdict_of_counts
from fe_posttrain.support.words import VOIDING, sentence

SIDES = ("reference", "trained")
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


def report(
    key: Key,
    reference: Counts,
    trained: Counts,
    verdict: Verdict,
    found: Mapping[str, NDArray],
    *,
    checks: Mapping[str, Mapping] | None = None,
    families: Mapping[str, Verdict] | None = None,
    screened: Counts | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """JSON-ready report of one verdict and of one for each family.

    Args:
        reference, trained: the draws that describe (attribution, sightings), prompts in one order.
        verdict: however it was computed; a failed BAR check voids its terms, see `voided`.
        found: regimes (M,) of "reference" and of "trained"; from log-weights only where no check voids them.
        checks: name -> {"verdict": "passed" | "failed" | "not checked", ...}; the rest of a check is passed on.
        families: verdicts over the prompts of a tag; each holds at alpha by itself.
        screened: reference draws of a number fixed beforehand, for the sightings, where `reference` was stopped by
            what it showed: thinned out, such counts still hold more hits than chance, and leave the null floor.
        seed: of thinning out unequal draws for the sightings.

    Keys: `verdict` (gain, elicited, created, undetermined, lost, each {"value", "low", "high"} in percentage points;
    undetermined has a value only), `attribution` ([{"budget", "share"}], share None without a gain), `b50` (a number
    or None) and `b50_above` (4^10 where A(B) stays below .5 up to there, else None), `null_floor`, `srr`, `ndr`,
    `sds`, `nscr` (None where undefined), `sightings`, `population` ({side: cover by budget, quantiles of p}),
    `calls` ({side: {regime: prompts}}), `key`, `prompts`, `draws`,
    `sentence`, `checks`, `families` ({name: the same without families and points}), empty where there are no tags,
    and `points`, a list each with a value per prompt: `prompt`, `family`, `regime` and hits and draws by side.

    Raises:
        ValueError: sides, regimes or verdict of different prompts.
    """
    if reference.prompt_ids != trained.prompt_ids:
        raise ValueError(f"{reference.source}, {trained.source}: prompts differ or are in another order; pass what "
                         "counts.aligned returns")  # fmt: skip
    checks = {name: dict(check) for name, check in (checks or {}).items()}
    screened = reference if screened is None else screened
    whole = _body(key, reference, trained, verdict, found, checks, screened, seed)
    parts = {}
    for name, rows in reference.families().items():
        if name not in (families or {}):
            continue
        calls = {side: found[side][rows] for side in SIDES}
        sides = [side.picked(rows) for side in (reference, trained, screened)]
        parts[name] = _body(key, *sides[:2], families[name], calls, checks, sides[2], seed)
    return whole | {"families": parts, "points": _points(reference, trained, found)}


def report_of_counts(key: Key, reference: Counts, trained: Counts, seed: int = 0) -> dict[str, Any]:
    """The report of two sets of counts; prompts in any order, numbers of draws fixed beforehand.

    Raises:
        ValueError: see `counts.aligned`; or a budget that is no positive whole number.
    """
    ladder_with(key.budget)
    reference, trained = aligned(reference, trained)

    def of(rows: NDArray | slice) -> Verdict:
        sides = [(side.correct[rows], side.drawn[rows]) for side in (reference, trained)]
        return verdict_of_counts(*sides, budget=key.budget, alpha=key.alpha, seed=seed)

    found = {
        name: regimes(Evidence.of_counts(side.correct, side.drawn, key.budget, key.delta), key.alpha)
        for name, side in zip(SIDES, (reference, trained), strict=True)
    }
    families = {name: of(rows) for name, rows in reference.families().items()}
    return report(key, reference, trained, of(slice(None)), found, families=families, seed=seed)


def voided(verdict: Verdict) -> Verdict:
    """Certifies nothing: elicited, created and lost 0 without an upper end; what is left of the gain is undetermined.

    The gain and its interval rest on plain draws and stay.
    """
    nothing = Term(0.0, 0.0, None)
    left = Term(verdict.gain.value)
    return replace(verdict, elicited=nothing, created=nothing, lost=nothing, undetermined=left)


def _body(
    key: Key,
    reference: Counts,
    trained: Counts,
    verdict: Verdict,
    found: Mapping[str, NDArray],
    checks: dict[str, dict],
    screened: Counts,
    seed: int,
) -> dict[str, Any]:
    m = reference.prompts
    sizes = {trained.prompts, verdict.prompts, *(len(found[side]) for side in SIDES)}
    if sizes != {m} or verdict.budget != key.budget:
        raise ValueError(
            f"{reference.source}: {m} prompts at B = {key.budget} against {sorted(sizes)} prompts and a verdict at "
            f"B = {verdict.budget}; compute verdict and regimes on the same prompts and budget"
        )
    if any(checks[name]["verdict"] == "failed" for name in VOIDING if name in checks):
        verdict = voided(verdict)
    return {
        "sentence": sentence(key, verdict, checks=checks, reference_draws=int(reference.drawn.sum())),
        "key": asdict(key),
        "prompts": m,
        "draws": {name: _draws(side) for name, side in zip(SIDES, (reference, trained), strict=True)},
        "verdict": {
            name: asdict(getattr(verdict, name)) for name in ("gain", "elicited", "created", "undetermined", "lost")
        },
        "calls": {side: counts_by_regime(found[side]) for side in SIDES},
        **_attribution(reference.p, trained.p, key.budget),
        **_sightings(screened.evened(seed), trained.evened(seed + 1)),
        "population": {name: _population(side, key) for name, side in zip(SIDES, (reference, trained), strict=True)},
        "checks": checks,
    }


def _points(reference: Counts, trained: Counts, found: Mapping[str, NDArray]) -> dict[str, Any]:
    """What is known of each prompt, as columns."""
    sides = dict(zip(SIDES, (reference, trained), strict=True))
    return {
        "prompt": list(reference.prompt_ids),
        "family": [None] * reference.prompts if reference.tags is None else list(reference.tags),
        "regime": {name: np.asarray(found[name]).tolist() for name in SIDES},
        "correct": {name: side.correct.tolist() for name, side in sides.items()},
        "drawn": {name: side.drawn.tolist() for name, side in sides.items()},
    }


def _draws(side: Counts) -> dict[str, int]:
    return {"total": int(side.drawn.sum()), "least": int(side.drawn.min()), "most": int(side.drawn.max())}


def _attribution(before: NDArray, after: NDArray, budget: int) -> dict[str, Any]:
    """A(B) over the ladder and B_50 of plug-in probabilities: a description."""
    shares = [{"budget": b, "share": attributed_share(before, after, b)} for b in ladder_with(budget)]
    half = half_gain_budget(before, after)
    above = half is None and bool((after > before).any())
    return {"attribution": shares, "b50": half, "b50_above": LARGEST if above else None}


def _sightings(reference: Counts, trained: Counts) -> dict[str, Any]:
    """What was seen at least once on either side, and how much of that chance alone would show."""
    sides = (reference.correct, int(reference.drawn[0]), trained.correct, int(trained.drawn[0]))
    seen = sightings(*sides)
    floor = null_floor(*sides)
    return {
        "sightings": {name: int(getattr(seen, name)) for name in ("kept", "shrunk", "expanded", "out")},
        "null_floor": asdict(floor),
        **{name: _number(getattr(seen, name)) for name in ("srr", "ndr", "sds", "nscr")},
    }


def _population(side: Counts, key: Key) -> dict[str, Any]:
    """How p is spread over a population of such prompts, by maximum likelihood: a description."""
    spread = npmle(side.correct, side.drawn)
    cover = [{"budget": b, "share": spread.cover(float(threshold(b, key.delta)))} for b in ladder_with(key.budget)]
    return {"cover": cover, "quantiles": {f"{q:g}": float(spread.quantile(q)) for q in QUANTILES}}


def _number(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else float(value)

"""What a comparison found, as JSON values: a row of numbers for each arm, paired differences, matches, verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fe_posttrain.methods.matching import common_kl, generated_match, hits_at_kl
from fe_posttrain.methods.measured import Measured
from fe_posttrain.methods.rule import conclude
from fe_posttrain.support.intervals import pass_at_k
from fe_posttrain.support.paired import Hits, paired_hits, paired_numbers, recovered_share

FEWEST_SEEDS = 3
JUDGED = ("method",)  # roles of arms on which there is a verdict
_OF_OBJECTIVE = ("free_energy", "gap")  # comparable only where both arms have one F
_NUMBERS = ("elicited_low", "created_low", "lost_low", *_OF_OBJECTIVE, "kl", "kl_efficiency")


@dataclass(frozen=True)
class ArmRuns:
    """The finished runs of an arm, by seed."""

    label: str
    role: str
    runs: Mapping[int, Measured]


def results(
    arms: Sequence[ArmRuns],
    *,
    name: str,
    seeds: Sequence[int],
    baseline: str,
    match: Sequence[str] = (),
    tuning: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything that is shown of a comparison.

    Args:
        arms: in the order of the comparison; an arm may lack seeds or have none.
        seeds: that were asked for.
        baseline: the arm that each other one is compared with.
        match: of "generated" and "kl".
        tuning: `seed`, `arms` (label -> trials, see `recipe.tuning`); passed on.

    Keys: `name`, `seeds`, `baseline`, `budgets` (every B that a run has), `draws` of the policy a prompt, `k` of
    pass@k: B, or all draws where those are fewer; `reference`: `pass_1`, `pass_k`; `arms`: label -> `role`, `seeds`,
    `missing`, `mean` (number -> mean over seeds), `runs` (seed -> numbers), `rounds` (seed -> [[step, kl, success]]),
    `families` (family -> number -> a value for each seed);
    `pairs`: label -> `problem` or None, `seeds`, `differences` (number -> {value, low, high, seeds} or None),
    `recovered` (share of the baseline's gain, "all" or family -> as a difference, None where it has none),
    `generated` and `kl`, where asked for; `verdicts`: label -> see `rule.conclude`; `tuning`; `notes`.

    Raises:
        ValueError: no run at all is finished.
    """
    every = [run for arm in arms for run in arm.runs.values()]
    if not every:
        raise ValueError(f"{name}: no run is finished; there is nothing to compare yet; run it without --report")
    draws = min(int(run.last.drawn.min()) for run in every)
    budgets = sorted({run.budget for run in every})
    k = min(budgets[0], draws)
    begun = {arm.label: arm for arm in arms if arm.runs}
    first = begun.get(baseline)
    pairs = {
        label: _pair(arm, first, k, match) for label, arm in begun.items() if first is not None and label != baseline
    }
    roles = {label: arm.role for label, arm in begun.items()}
    runs = {label: arm.runs for label, arm in begun.items()}
    return {
        "name": name,
        "seeds": list(seeds),
        "baseline": baseline,
        "budgets": budgets,
        "draws": draws,
        "k": k,
        "reference": _reference(every[0], k),
        "arms": {arm.label: _arm(arm, seeds, k) for arm in arms},
        "pairs": pairs,
        "verdicts": {label: conclude(label, runs, roles) for label in begun if roles[label] in JUDGED},
        "tuning": tuning,
        "notes": [
            *([] if first else [f"{baseline}, the baseline, has no finished run: no differences."]),
            *_notes(every, budgets, draws, pairs),
        ],
    }


def _reference(run: Measured, k: int) -> dict[str, float | None]:
    """The reference itself, and with a verifier that picks from k draws."""
    first = run.rounds[0]
    enough = int(first.drawn.min()) >= k
    return {
        "pass_1": first.success,
        "pass_k": float(pass_at_k(first.correct, first.drawn, k).mean()) if enough else None,
    }


def _arm(arm: ArmRuns, seeds: Sequence[int], k: int) -> dict[str, Any]:
    rows = {seed: run.numbers(k) for seed, run in sorted(arm.runs.items())}
    names = next(iter(rows.values()), {})
    return {
        "role": arm.role,
        "seeds": list(rows),
        "missing": [seed for seed in seeds if seed not in rows],
        "mean": {number: _mean([row[number] for row in rows.values()]) for number in names},
        "runs": {str(seed): row for seed, row in rows.items()},
        "rounds": {str(seed): [[r.step, r.kl, r.success] for r in run.rounds] for seed, run in arm.runs.items()},
        "families": _families([run for _, run in sorted(arm.runs.items())]),
    }


def _families(runs: Sequence[Measured]) -> dict[str, dict[str, list[float]]]:
    each = [run.families() for run in runs]
    first = each[0] if each else {}
    return {name: {key: [one[name][key] for one in each] for key in numbers} for name, numbers in first.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))


def _pair(arm: ArmRuns, other: ArmRuns, k: int, match: Sequence[str]) -> dict[str, Any]:
    """An arm beside the baseline, over the seeds that both have."""
    seeds = sorted(arm.runs.keys() & other.runs.keys())
    mine, theirs = ([side.runs[seed] for seed in seeds] for side in (arm, other))
    found: dict[str, Any] = {"problem": _problem(mine, theirs), "seeds": seeds, "differences": {}}
    if found["problem"]:
        return found
    differences = {"pass_1": _hits(mine, theirs, 1)}
    if k > 1:
        differences["pass_k"] = _hits(mine, theirs, k)
    for number in _NUMBERS:
        differences[number] = _of_numbers(number, mine, theirs, k)
    found["differences"] = differences
    found["recovered"] = _recovered(mine, theirs)
    if "generated" in match:
        found["generated"] = generated_match(arm.runs, other.runs)
    if "kl" in match:
        found["kl"] = _at_equal_kl(mine, theirs)
    return found


def _problem(mine: Sequence[Measured], theirs: Sequence[Measured]) -> str | None:
    """Why the two cannot be paired; None where they can."""
    if not mine:
        return "no seed that both have"
    every = [*mine, *theirs]
    if len({run.key for run in every}) > 1:
        return "probed against another reference, decoding or verifier"
    if len({tuple(run.prompts) for run in every}) > 1:
        return "probed on other prompts"
    return None


def _hits(mine: Sequence[Measured], theirs: Sequence[Measured], k: int) -> dict[str, float]:
    sides = [
        Hits(np.stack([run.last.correct for run in side]), np.stack([run.last.drawn for run in side]), k)
        for side in (mine, theirs)
    ]
    return asdict(paired_hits(*sides))


def _recovered(mine: Sequence[Measured], theirs: Sequence[Measured]) -> dict[str, dict[str, float] | None]:
    """Share of the other arm's gain over all probe prompts, and over those of each family."""
    tags = np.array(mine[0].report["points"].get("family", [None] * len(mine[0].prompts)), dtype=object)
    picks = {"all": np.full(len(tags), True)} | {name: tags == name for name in mine[0].families()}
    found = {}
    for name, picked in picks.items():
        sides = [
            Hits(np.stack([r.correct[picked] for r in side]), np.stack([r.drawn[picked] for r in side]))
            for side in ([r.last for r in mine], [r.last for r in theirs], [mine[0].rounds[0]])
        ]
        share = recovered_share(*sides)
        found[name] = None if share is None else asdict(share)
    return found


def _of_numbers(number: str, mine: Sequence[Measured], theirs: Sequence[Measured], k: int) -> dict | None:
    if number in _OF_OBJECTIVE and any(run.objective != mine[0].objective for run in (*mine, *theirs)):
        return None
    values = [[run.numbers(k)[number] for run in side] for side in (mine, theirs)]
    return None if None in values[0] + values[1] else asdict(paired_numbers(*values))


def _at_equal_kl(mine: Sequence[Measured], theirs: Sequence[Measured]) -> dict[str, Any]:
    """`kl`, success of `arm` and `other` there, `difference`; all None where there is no common KL, and `why`."""
    kl = common_kl([*mine, *theirs])
    if kl is None:
        return {"kl": None, "arm": None, "other": None, "difference": None, "why": "no common KL"}
    hits = [hits_at_kl(side, kl) for side in (mine, theirs)]
    at = [float(side.value.mean()) for side in hits]
    return {"kl": kl, "arm": at[0], "other": at[1], "difference": asdict(paired_hits(*hits)), "why": ""}


def _notes(every: Sequence[Measured], budgets: Sequence[int], draws: int, pairs: Mapping[str, Any]) -> list[str]:
    """What a reader of the table has to know, in sentences."""
    notes = []
    if fewest := min((len(pair["seeds"]) for pair in pairs.values()), default=0):
        if fewest < FEWEST_SEEDS:
            notes.append(
                f"{fewest} common seed{'s' if fewest > 1 else ''}: intervals over fewer than {FEWEST_SEEDS} seeds are "
                "not meaningful."
            )
    if len(budgets) > 1:
        notes.append(
            f"Runs have different B ({', '.join(map(str, budgets))}): what is certified does not compare; write "
            "budget in the comparison."
        )
    if draws < budgets[0]:
        notes.append(
            f"pass@{budgets[0]} has no unbiased estimate from {draws} draws of a prompt: pass@{draws} is shown; "
            f"support_draws: {budgets[0]} would give it."
        )
    if any(run.objective != every[0].objective for run in every):
        notes.append("Arms have different weights or beta: their F and gap are of different functions.")
    notes += [f"{label}: {pair['problem']}; no differences." for label, pair in pairs.items() if pair["problem"]]
    return notes

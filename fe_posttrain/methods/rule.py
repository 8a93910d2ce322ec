"""When a method may be said to go beyond elicitation, and what is said otherwise.

"Beyond elicitation at B" needs every condition below. A condition that could not be checked does not hold. Otherwise
the method is "consistent with elicitation" where elicitation is certified and no creation, and "undetermined" in
every other case. That nothing was created is never said.
"""

from collections.abc import Mapping
from typing import Any

from fe_posttrain.methods.measured import Measured
from fe_posttrain.support.budgets import threshold
from fe_posttrain.support.paired import paired_numbers

BEYOND, CONSISTENT, UNDETERMINED = "beyond elicitation", "consistent with elicitation", "undetermined"
CONTROLS = 2  # rejection-sampling SFT, and iterated rejection sampling
_BASIN = 0.1  # p_ref of a basin prompt is at least this

Runs = Mapping[int, Measured]


def conclude(label: str, arms: Mapping[str, Runs], roles: Mapping[str, str]) -> dict[str, Any]:
    """The verdict on an arm: `conclusion`, `budget`, and `conditions`, each `name`, `holds` (None: not checked), `why`.

    Args:
        arms: label -> seed -> run, every arm with a run at least.
        roles: label -> method, control, negative, positive or base.
    """
    runs = arms[label]
    others = {role: {x: arms[x] for x in arms if roles[x] == role and x != label} for role in set(roles.values())}
    conditions = [
        _certified(runs),
        _beyond_rollouts(runs),
        _larger(runs, others.get("control", {})),
        _silent(others.get("negative", {})),
        _detected(others.get("positive", {})),
        _not_in(runs),
    ]
    created = any(run.low("created") > 0 for run in runs.values())
    elicited = all(run.low("elicited") > 0 for run in runs.values())
    if all(condition["holds"] for condition in conditions):
        conclusion = BEYOND
    else:
        conclusion = CONSISTENT if elicited and not created else UNDETERMINED
    return {"conclusion": conclusion, "budget": _budgets(runs), "conditions": conditions}


def _condition(name: str, holds: bool | None, why: str) -> dict[str, Any]:
    return {"name": name, "holds": holds, "why": why}


def _budgets(runs: Runs) -> list[int]:
    return sorted({run.budget for run in runs.values()})


def _lows(runs: Runs) -> str:
    return ", ".join(f"{run.low('created'):.2f}" for run in runs.values()) + " points"


def _certified(runs: Runs) -> dict[str, Any]:
    holds = all(run.low("created") > 0 for run in runs.values())
    return _condition("creation is certified in every seed", holds, f"at least {_lows(runs)}")


def _beyond_rollouts(runs: Runs) -> dict[str, Any]:
    """B >= B_train, the rollouts that training itself drew of a prompt."""
    name, needed = "B is no less than the rollouts that training drew of a prompt", 0.0
    for run in runs.values():
        calls, prompts = run.account["verifier_calls"], run.report["ledger"].get("training_prompts_drawn")
        if calls and not prompts:
            return _condition(name, None, "the run does not tell how many training prompts it drew from")
        needed = max(needed, calls / prompts if calls else 0.0)
    budget = min(_budgets(runs))
    return _condition(name, budget >= needed, f"B = {budget}, {needed:.0f} rollouts")


def _larger(runs: Runs, controls: Mapping[str, Runs]) -> dict[str, Any]:
    name = "it is larger than with rejection sampling, once and iterated"
    if len(controls) < CONTROLS:
        return _condition(name, None, f"{len(controls)} of {CONTROLS} arms of role control")
    words, holds = [], True
    for label, control in controls.items():
        seeds = sorted(runs.keys() & control.keys())
        if len(seeds) < 2 or _budgets(runs) != _budgets(control):
            return _condition(name, None, f"{label}: two common seeds at one B are needed")
        lows = [[side[seed].low("created") for seed in seeds] for side in (runs, control)]
        found = paired_numbers(*lows)
        holds = holds and found.low > 0
        words.append(f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] points over {label}")
    return _condition(name, holds, "; ".join(words))


def _silent(controls: Mapping[str, Runs]) -> dict[str, Any]:
    name = "negative controls are silent"
    if not controls:
        return _condition(name, None, "no arm of role negative")
    loud = [label for label, runs in controls.items() if any(run.low("created") > 0 for run in runs.values())]
    return _condition(name, not loud, f"creation certified in {', '.join(loud)}" if loud else _all(controls))


def _detected(controls: Mapping[str, Runs]) -> dict[str, Any]:
    name = "the positive control is detected"
    if not controls:
        return _condition(name, None, "no arm of role positive")
    missed = [label for label, runs in controls.items() if any(run.low("created") <= 0 for run in runs.values())]
    why = f"no creation certified in a seed of {', '.join(missed)}" if missed else _all(controls)
    return _condition(name, not missed, why)


def _all(controls: Mapping[str, Runs]) -> str:
    return f"{', '.join(controls)}, {sum(map(len, controls.values()))} runs"


def _not_in(runs: Runs) -> dict[str, Any]:
    """The ledger does not certify the prompts IN: creation is more than prompts that it certifies could bear.

    A prompt that is IN at B has c_B >= 1 - delta, so p_t - c_B <= delta there; a basin prompt (1 - max(.1, p*_B))^B.
    """
    name = "the ledger does not certify those prompts as within reach"
    words, holds = [], True
    for run in runs.values():
        if run.report["checks"].get("bar", {}).get("verdict") != "passed":
            return _condition(name, None, "the density check of a seed has not passed: its ledger says nothing")
        key, regimes = run.report["key"], run.report["points"]["regime"]["reference"]
        basin = (1 - max(_BASIN, float(threshold(key["budget"], key["delta"])))) ** key["budget"]
        borne = 100 * (regimes.count("tail") * key["delta"] + regimes.count("basin") * basin) / len(regimes)
        holds = holds and run.low("created") > borne
        words.append(f"{run.low('created'):.2f} against {borne:.2f}")
    return _condition(name, holds, f"points created against what prompts within reach can bear: {', '.join(words)}")

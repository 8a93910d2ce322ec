"""The verdict in words: what a careful person would write, in three sentences at most.

Lower ends are rounded down and upper ends up, so that no digit claims more than the number behind it. Creation is
never denied: without a certified one, the sentence says how much there can have been.
"""

import math
from collections.abc import Mapping

from fe_posttrain.support.budgets import Key
from fe_posttrain.support.verdict import Verdict

VOIDING = ("bar",)  # failed, nothing that rests on log-weights holds
_POWER = 100  # reference draws per draw of the budget that certifying creation in full takes


def sentence(
    key: Key, verdict: Verdict, *, checks: Mapping[str, Mapping] | None = None, reference_draws: int | None = None
) -> str:
    """One to three sentences about a verdict.

    Args:
        checks: name -> {"verdict": "passed", "failed" or "not checked", "why": a few words, where there are any}.
        reference_draws: of all prompts together; where a gain is there and they are too few to certify creation in
            full, it says so.
    """
    checks = checks or {}
    void = [name for name in VOIDING if name in checks and checks[name]["verdict"] == "failed"]
    if void:
        why = checks[void[0]].get("why")
        return (
            f"{_change(verdict)} is not attributed: the {_named(void[0])} check failed{f' ({why})' if why else ''}, "
            "which voids everything that rests on log-weights, so nothing is certified as elicited, created or lost. "
            f"{_relative(key, checks)}"
        )
    return f"{_sources(verdict, reference_draws)} {_lost(verdict)} {_relative(key, checks)}"


def _change(verdict: Verdict) -> str:
    """The gain with its interval, and over how many prompts."""
    gain, prompts = verdict.gain, f"{verdict.prompts} prompt{'s' if verdict.prompts != 1 else ''}"
    if gain.low > 0:
        net = "net " if verdict.lost.low > 0 else ""
        return f"The {net}gain of {gain.value:.1f} points ({down(gain.low)} to {up(gain.high)}) over {prompts}"
    if gain.high < 0:
        return f"The drop of {-gain.value:.1f} points ({down(-gain.high)} to {up(-gain.low)}) over {prompts}"
    value = round(gain.value, 1) + 0.0  # no minus before a zero
    return f"The change of {value:+.1f} points ({down(gain.low)} to +{up(gain.high)}) over {prompts}"


def _sources(verdict: Verdict, reference_draws: int | None) -> str:
    """Where the gain came from: the first sentence."""
    elicited, created, at = verdict.elicited, verdict.created, f"B = {verdict.budget}"
    gained = verdict.gain.low > 0
    if created.low > 0:
        verb = "goes beyond elicitation" if gained else "comes with creation"
        rest = (
            f"at least {down(elicited.low)} points were within its reach"
            if elicited.low > 0
            else f"no elicitation is certified ({_most(elicited.high)} points)"
        )
        return (
            f"{_change(verdict)} {verb} at {at}: at least {down(created.low)} points were created, out of reach of "
            f"{verdict.budget} draws of the reference, and {rest}."
        )
    power = _power(verdict, reference_draws)
    if elicited.low > 0:
        verb = "is consistent with elicitation" if gained else "comes with elicitation"
        most = ", though most of it is undetermined" if gained and 2 * elicited.low < verdict.gain.value else ""
        gross = verdict.lost.low > 0 or elicited.low > verdict.gain.value
        of_it = "of it" if gained and not gross else "of what was gained"
        return (
            f"{_change(verdict)} {verb} at {at}{most}: at least {down(elicited.low)} points {of_it} were within the "
            f"reference's reach, and {_most(created.high)} points can have been created{power}."
        )
    ends = f"{_most(elicited.high)} points can have been elicited, {_most(created.high)} created{power}"
    if gained:
        return f"{_change(verdict)} is undetermined at {at}: nothing of it is certified as elicited or created; {ends}."
    chance = "" if verdict.gain.high < 0 else " may be chance and"
    return f"{_change(verdict)}{chance} comes with no certified elicitation or creation at {at}; {ends}."


def _lost(verdict: Verdict) -> str:
    """What was lost, and how much of the change nobody can tell: the second sentence."""
    lost, left = verdict.lost, verdict.undetermined.value
    certified = max(verdict.elicited.low, verdict.created.low, lost.low) > 0
    rest = f"; {left:.1f} points are undetermined" if certified and left >= 0.05 else ""
    if lost.low > 0:
        return f"At least {down(lost.low)} points were lost, on prompts that the reference solves more often{rest}."
    return f"No loss is certified: {_most(lost.high)} points can have been lost{rest}."


def _relative(key: Key, checks: Mapping[str, Mapping]) -> str:
    """The key, and the checks that gated the verdict: the last sentence."""
    made = ", ".join(f"{_named(name)} {check['verdict']}" for name, check in checks.items())
    return f"This is relative to {key}{f'; checks: {made}' if made else ''}."


def _power(verdict: Verdict, reference_draws: int | None) -> str:
    needed = _POWER * verdict.budget
    enough = reference_draws is None or reference_draws >= needed
    if enough or verdict.gain.low <= 0 or verdict.created.high < 0.1:
        return ""
    return f" (certifying it in full takes about 100 B = {needed} draws of the reference; there were {reference_draws})"


def _named(check: str) -> str:
    return {"bar": "BAR"}.get(check, check.replace("_", " "))


def _most(points: float) -> str:
    return "less than 0.1" if points < 0.1 else f"at most {up(points)}"


def down(points: float) -> str:
    """One digit after the point, or the first that is not 0; never more than the number."""
    if 0 < points < 0.1:
        digit = 10.0 ** math.floor(math.log10(points))
        return f"{math.floor(points / digit + 1e-9) * digit:.1g}"
    return f"{math.floor(10 * points + 1e-9) / 10:.1f}"


def up(points: float) -> str:
    """One digit after the point, never less than the number."""
    return f"{math.ceil(10 * points - 1e-9) / 10 + 0.0:.1f}"

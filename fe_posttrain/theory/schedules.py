"""Weights of the free energy as functions of the optimizer step.

A run whose beta or energy weights move descends a different F at every step; the optimum, F* and the gap shown
at a step are those of the weights in force.
"""

import math

SCHEDULES = ("constant", "switch", "linear", "cosine")


def scheduled(
    step: int,
    total_steps: int,
    *,
    value: float,
    kind: str = "constant",
    final: float | None = None,
    initial: float = 0.0,
    warmup: float = 0,
    until: float | None = None,
) -> float:
    """A weight (w_r, w_d or beta) in force at optimizer step `step`, counted from 0, of a run of `total_steps`.

        step < warmup   initial + (value - initial) step / warmup
        constant        value
        switch          value before `until`, final from it on
        linear          value + (final - value) u             u = (step - warmup) / (until - warmup)
        cosine          final + (value - final) (1 + cos(pi u)) / 2

    Args:
        step: 0 or more. Step `warmup` has `value`; step `until` and all later ones `final`.
        total_steps: 1 or more. A run of one step has `value`.
        value: the weight after the warm-up.
        kind: one of `SCHEDULES`.
        final: last value; every kind but `constant` needs it.
        initial: value at step 0 of a warm-up.
        warmup: length of the warm-up; below 1: a share of the run (.25 is round(.25 total_steps) steps),
            otherwise a whole number of steps.
        until: where `final` is reached, a share or a step like `warmup`; None: the last step,
            `total_steps - 1` (not for `switch`). Beyond the run: the run ends on the way.

    Raises:
        ValueError: as `key: what; why; what to write`.

    >>> [scheduled(step, 5, value=0.4, kind="linear", final=0.0, warmup=2) for step in (0, 1, 2, 3, 4, 9)]
    [0.0, 0.2, 0.4, 0.2, 0.0, 0.0]
    >>> [scheduled(step, 8, value=1.0, kind="switch", final=0.0, until=0.25) for step in (0, 1, 2, 7)]
    [1.0, 1.0, 0.0, 0.0]
    """
    _check_kind(step, total_steps, kind, final, until)
    start, end = _window(total_steps, kind, value, final, initial, warmup, until)
    if step < start:
        return initial + (value - initial) * (step / start)
    if step == start or kind == "constant" or (kind == "switch" and step < end):
        return value
    if step >= end:
        return final
    progress = (step - start) / (end - start)
    if kind == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return value + (final - value) * progress


def _check_kind(step: int, total_steps: int, kind: str, final: float | None, until: float | None) -> None:
    """What can be refused before shares are turned into steps."""
    if kind not in SCHEDULES:
        raise ValueError(f"kind: {kind!r}; unknown; write one of {', '.join(SCHEDULES)}")
    if (kind == "constant") != (final is None):
        raise ValueError(
            f"final: {final} with kind {kind}; a schedule needs its last value and a constant has none; write both "
            "or neither"
        )
    if kind == "constant" and until is not None:
        raise ValueError(f"until: {until} with kind constant; a constant ends nowhere; leave until out")
    if kind == "switch" and until is None:
        raise ValueError(
            "until: None with kind switch; nothing says when to switch; write a step or a share of the run"
        )
    if step < 0:
        raise ValueError(f"step: {step}; steps are counted from 0; write 0 or more")
    if total_steps < 1:
        raise ValueError(f"total_steps: {total_steps}; a run has at least one step; write 1 or more")


def _window(
    total_steps: int,
    kind: str,
    value: float,
    final: float | None,
    initial: float,
    warmup: float,
    until: float | None,
) -> tuple[int, int]:
    """The steps at which `value` and `final` are reached; the second means nothing for a constant."""
    start = _in_steps("warmup", warmup, total_steps)
    if initial and not warmup:
        raise ValueError(
            f"initial: {initial} without warmup; only a warm-up starts there; write its length, or no initial"
        )
    end = total_steps - 1 if until is None else _in_steps("until", until, total_steps)
    one_step = until is None and start == end == 0
    if kind != "constant" and end <= start and not one_step:
        raise ValueError(
            f"until: step {end} of {total_steps} after a warm-up of {start} steps; the weight must reach {value} "
            f"before it leaves for {final}; write a later until or a shorter warmup"
        )
    return start, end


def _in_steps(key: str, length: float, total_steps: int) -> int:
    """A share of the run (below 1) or a number of steps, in steps."""
    if 0 <= length < 1:
        return round(length * total_steps)
    if not (length >= 1 and float(length).is_integer()):
        raise ValueError(
            f"{key}: {length}; a share of the run lies below 1 and steps are whole; write such a share or such a number"
        )
    return int(length)

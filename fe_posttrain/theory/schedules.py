"""beta as a function of the optimizer step.

A run whose beta moves descends a different F at every step; the optimum, F* and the gap shown at a step are
those of the beta in force.
"""

import math

BETA_SCHEDULES = ("constant", "linear", "cosine")


def beta_at(
    step: int,
    total_steps: int,
    *,
    beta: float,
    beta_final: float | None = None,
    schedule: str = "constant",
) -> float:
    """beta in force at optimizer step `step`, counted from 0, of a run of `total_steps`.

        constant   beta
        linear     beta + (beta_final - beta) u
        cosine     beta_final + (beta - beta_final) (1 + cos(pi u)) / 2        u = step / (total_steps - 1)

    Args:
        step: 0 or more. Step 0 has `beta`; the last step, `total_steps - 1`, and all later ones `beta_final`.
        total_steps: 1 or more. A run of one step has `beta`.
        beta: first value, in energy units per nat.
        beta_final: last value; every schedule but `constant` needs it.
        schedule: one of `BETA_SCHEDULES`.

    Raises:
        ValueError: as `key: what; why; what to write`.

    >>> [beta_at(step, 3, beta=0.4, beta_final=0.0, schedule="linear") for step in (0, 1, 2, 9)]
    [0.4, 0.2, 0.0, 0.0]
    """
    if schedule not in BETA_SCHEDULES:
        raise ValueError(f"beta_schedule: {schedule!r}; unknown; write one of {', '.join(BETA_SCHEDULES)}")
    if (schedule == "constant") != (beta_final is None):
        raise ValueError(
            f"beta_final: {beta_final} with beta_schedule {schedule}; a schedule needs its last value and a "
            "constant has none; write both or neither"
        )
    if step < 0:
        raise ValueError(f"step: {step}; steps are counted from 0; write 0 or more")
    if total_steps < 1:
        raise ValueError(f"total_steps: {total_steps}; a run has at least one step; write 1 or more")
    if schedule == "constant" or step == 0:
        return beta
    if step >= total_steps - 1:
        return beta_final
    progress = step / (total_steps - 1)
    if schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return beta + (beta_final - beta) * progress

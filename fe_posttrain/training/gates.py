"""Weights of F as functions of the step and of what a prompt's group achieved, as a recipe names them.

A schedule moves one weight over the run; a gate multiplies the reward's advantages of a group's rows and the weight
of its prompt's demonstration. Both are a name with arguments, or a function of the user's by dotted path.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from fe_posttrain.theory.gates import GATES, GroupOutcomes
from fe_posttrain.theory.projections import SHAPINGS
from fe_posttrain.theory.schedules import SCHEDULES, scheduled
from fe_posttrain.training.named import Kind, find

Entry = str | dict[str, dict[str, Any]] | None  # what a recipe holds

GATE = Kind("gate", "gate", GATES)
SHAPING = Kind("demonstration_shaping", "shaping", SHAPINGS)
SCHEDULE_OF = {
    "reward_energy_weight": "reward_energy_schedule",
    "demonstration_energy_weight": "demonstration_energy_schedule",
    "beta": "beta_schedule",
}


class Weights(NamedTuple):
    """w_r, w_d and beta in force at a step."""

    reward: float
    demonstration: float
    beta: float

    @property
    def needs_rollouts(self) -> bool:
        """Whether a term of F is taken on the policy's own samples."""
        return self.reward > 0 or self.beta > 0


def gate_factors(
    args, rewards: Tensor, entropies: Tensor | None, group_size: int, step: int, total_steps: int
) -> tuple[Tensor, Tensor]:
    """Factors of each row's reward advantage (N,), and of each group's demonstration (groups,), by `args.gate`.

    Args:
        rewards: (N,) of all processes, groups adjoining; NaN: unscorable.
        entropies: (N,) mean entropy per token of each rollout, nats; None where the sampler tells none.
    """
    grouped = rewards.view(-1, group_size)
    outcomes = GroupOutcomes(
        rewards=grouped,
        solved=grouped >= args.success_threshold,
        entropies=None if entropies is None else entropies.view(-1, group_size),
        step=step,
        total_steps=total_steps,
    )
    of_rows, of_demonstrations = find(GATE, args.gate)(outcomes)
    return of_rows.expand_as(grouped).reshape(-1).to(rewards.dtype), of_demonstrations.reshape(-1).to(rewards.dtype)


def schedule(key: str, entry: Entry, value: float) -> Callable[[int, int], float]:
    """(step, total_steps) -> the weight in force, for the entry of `key` and the weight's own value.

    A function of the user's is called as f(step, total_steps, value=..., **arguments).

    Raises:
        ValueError: unknown, or arguments that it does not take.
    """
    if entry is None:
        return lambda step, total_steps: value
    kinds = {kind: partial(scheduled, kind=kind) for kind in SCHEDULES}
    return partial(find(Kind(key, "schedule", kinds), entry), value=value)


def values_of(entry: Entry, value: float) -> tuple[float, ...] | None:
    """The values between which a weight moves, in their order; None where only a user's function knows."""
    if entry is None:
        return (value,)
    kind, arguments = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()), ("", {}))
    if kind not in SCHEDULES:
        return None
    first = (arguments.get("initial", 0.0),) if arguments.get("warmup") else ()
    last = (arguments["final"],) if arguments.get("final") is not None else ()
    return (*first, value, *last)

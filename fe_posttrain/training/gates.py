"""Weights of F as functions of the step and of what a prompt's group achieved, as a recipe names them.

A schedule moves one weight over the run; a gate multiplies the reward's advantages of a group's rows and the weight
of its prompt's demonstration. Both are a name with arguments, or a function of the user's by dotted path.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fe_posttrain.theory.gates import GATES, GroupOutcomes
from fe_posttrain.theory.projections import SHAPINGS
from fe_posttrain.theory.schedules import SCHEDULES, scheduled
from fe_posttrain.training.named import Kind, find, split

Entry = str | dict[str, dict[str, Any]] | None  # what a recipe holds

GATE = Kind("gate", "gate", GATES)
SHAPING = Kind("demonstration_shaping", "shaping", SHAPINGS)
SCHEDULE_OF = {
    "reward_energy_weight": "reward_energy_schedule",
    "demonstration_energy_weight": "demonstration_energy_schedule",
    "beta": "beta_schedule",
}
_GIVEN = {"step", "total_steps", "value", "kind"}


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


_TRIAL = GroupOutcomes(  # all, one and none solved
    rewards=torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
    solved=torch.tensor([[True, True], [True, False], [False, False]]),
    entropies=torch.ones(3, 2),
    step=0,
    total_steps=1,
)


def weighs(entry: Entry) -> tuple[bool, bool]:
    """Whether a gate changes rewards, and whether it changes demonstrations, on three groups of two rows.

    Raises:
        ValueError: it is not there, or does not take what a recipe gives it, or gives other than factors.
    """
    of_rows, of_demonstrations = _tried(GATE, entry, _TRIAL)
    if tuple(of_rows.shape) not in ((3, 1), (3, 2)) or of_demonstrations.shape != (3,):
        raise ValueError(
            f"gate: {entry}: shapes {tuple(of_rows.shape)} and {tuple(of_demonstrations.shape)} for 3 groups of 2 "
            "rows; rows and demonstrations are multiplied by them; give (groups, 1) or (groups, rows), and (groups,)"
        )
    return bool((of_rows != 1).any()), bool((of_demonstrations != 1).any())


def try_shaping(entry: Entry) -> None:
    """Ask a shaping about three tokens, the last masked.

    Raises:
        ValueError: as in `weighs`.
    """
    mask = torch.tensor([[True, True, False]])
    phi = _tried(SHAPING, entry, -torch.ones(1, 3), torch.ones(1, 3), mask)
    if phi.shape != mask.shape:
        raise ValueError(
            f"demonstration_shaping: {entry}: shape {tuple(phi.shape)} for one row of 3 tokens; each token has a "
            "factor; give (rows, tokens)"
        )


def _tried(kind: Kind, entry: Entry, *words: Any) -> Any:
    function = find(kind, entry)
    try:
        return function(*words)
    except TypeError as error:
        raise ValueError(f"{kind.key}: {entry}: {error}; it was tried on a few rows; mend its arguments") from error


def schedule(key: str, entry: Entry, value: float) -> Callable[[int, int], float]:
    """(step, total_steps) -> the weight in force, for the entry of `key` and the weight's own value.

    A function of the user's is called as f(step, total_steps, value=..., **arguments).

    Raises:
        ValueError: unknown, or arguments that it does not take.
    """
    if entry is None:
        return lambda step, total_steps: value
    _, arguments = split(Kind(key, "schedule", {}), entry)
    for name in _GIVEN.intersection(arguments):
        raise ValueError(f"{key}: {name} among the arguments of a schedule; the run gives it; remove it")
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

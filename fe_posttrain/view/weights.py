"""Weights of F as a resolved recipe holds them: what they are, and between which values a schedule moves them."""

from collections.abc import Mapping
from typing import Any

_SCHEDULES = {
    "reward_energy_weight": "reward_energy_schedule",
    "demonstration_energy_weight": "demonstration_energy_schedule",
    "beta": "beta_schedule",
}


def is_used(recipe: Mapping[str, Any], weight: str) -> bool:
    """Whether the weight is positive at any step; a schedule of the user's own may make it so."""
    return any(value > 0 for value in _values(recipe, weight)) or isinstance(recipe.get(_SCHEDULES[weight]), str)


def rolls_out(recipe: Mapping[str, Any]) -> bool:
    """Whether the run makes rollouts: for the reward, or for a KL that is taken on them."""
    on_rollouts = recipe.get("kl_sampler") != "demonstrations" and is_used(recipe, "beta")
    return is_used(recipe, "reward_energy_weight") or on_rollouts


def shown(recipe: Mapping[str, Any], weight: str, arrow: str = "→") -> str:
    """`0.1`, `(0.9 → 0.05)`, or `(0.1, then f)` for a schedule of the user's own."""
    values = _values(recipe, weight)
    entry = recipe.get(_SCHEDULES[weight])
    if entry is not None and len(values) == 1:
        return f"({values[0]:g}, moved by {entry if isinstance(entry, str) else next(iter(entry))})"
    words = f" {arrow} ".join(f"{value:g}" for value in values)
    return f"({words})" if len(values) > 1 else words


def _values(recipe: Mapping[str, Any], weight: str) -> list[float]:
    entry = recipe.get(_SCHEDULES[weight])
    arguments = next(iter(entry.values())) if isinstance(entry, dict) else {}
    first = [arguments.get("initial", 0.0)] if arguments.get("warmup") else []
    last = [arguments["final"]] if arguments.get("final") is not None else []
    return [*first, recipe.get(weight) or 0.0, *last]

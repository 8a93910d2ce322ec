"""Reward functions by name, and what stands in where F has no reward energy."""

from collections.abc import Callable
from typing import Any

from fe_posttrain.training.named import Kind, find

# name: where it is. TRL's signature: f(prompts, completions, **columns) -> one float per completion.
REWARDS = {
    "chain_sum": "fe_posttrain.tasks.chain_sum:correct",
    "digits": "fe_posttrain.tasks.digits:correct",
    "formats": "fe_posttrain.tasks.formats:correct",
    "gsm8k": "fe_posttrain.tasks.gsm8k:correct",
}
_NEEDS = {"chain_sum": ("reasoning_gym", "tasks"), "gsm8k": ("math_verify", "math")}  # name: package, our extra
KIND = Kind("reward_funcs", "reward", REWARDS, _NEEDS)


def find_reward(entry: str | dict[str, dict[str, Any]]) -> Callable:
    """The reward function that an entry of `reward_funcs` means; as `named.find`."""
    return find(KIND, entry)


def no_reward(prompts: list, **_) -> list[float]:
    """The reward of a run whose F has none (w_r = 0): GRPOTrainer asks for one function at least."""
    return [0.0] * len(prompts)

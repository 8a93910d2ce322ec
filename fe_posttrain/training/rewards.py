"""Reward functions: by name or dotted path, and what stands in where F has no reward energy."""

from collections.abc import Callable
from importlib import import_module

# name: where it is. TRL's signature: f(prompts, completions, **columns) -> one float per completion.
REWARDS = {
    "chain_sum": "fe_posttrain.tasks.chain_sum:correct",
    "digits": "fe_posttrain.tasks.digits:correct",
}


def find_reward(name: str) -> Callable:
    """The reward function called `name`, or at the dotted path `package.module:function`.

    Raises:
        ValueError: neither is there; the message lists the names.
    """
    path = REWARDS.get(name, name)
    module, _, attribute = path.partition(":")
    if not attribute:
        known = ", ".join(sorted(REWARDS))
        raise ValueError(f"reward_funcs: {name!r}; no such reward; write one of {known}, or package.module:function")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"reward_funcs: {name!r}; {error}; write package.module:function") from error


def no_reward(prompts: list, **_) -> list[float]:
    """The reward of a run whose F has none (w_r = 0): GRPOTrainer asks for one function at least."""
    return [0.0] * len(prompts)

"""Prompts with demonstrations of their own, fixed rewards, and the terms of F row by row."""

import small
import torch
from by_hand import fixed_rollouts, log_probs_with_grad

from fe_posttrain.tasks import digits

# Rewards of four groups of four: s = 1, 0, 3 and 4 successes.
SOLVED = [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def rows(count: int = 40):
    """Prompts with a column `demonstration`."""
    found = small.prompts(count)
    return found.add_column("demonstration", [digits.demonstration(x) for x in found["prompt"]])


def by_place(completions, **_) -> list[float]:
    """The reward of a row by its place in the batch: four groups with known successes."""
    return SOLVED[: len(completions)]


class Rollouts:
    """Fixed completions as `rollout_func`; keeps what each call was asked and gave."""

    def __init__(self):
        self.drawn: list[tuple[list[list[int]], list[list[int]]]] = []

    def __call__(self, prompts, trainer):
        found = fixed_rollouts(prompts, trainer)
        self.drawn.append(trainer.drawn)
        return found


def demonstrated(prompt_ids: list[list[int]]) -> list[list[int]]:
    """Token ids of each prompt's demonstration, end token included."""
    tokenizer = small.TOKENIZER
    texts = [digits.demonstration(x) for x in tokenizer.batch_decode(prompt_ids)]
    return [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]


def demonstration_rows(policy, prompt_ids: list[list[int]]) -> list[torch.Tensor]:
    """Log-probs of the tokens of each prompt's demonstration, with gradient."""
    return log_probs_with_grad(policy, prompt_ids, demonstrated(prompt_ids))


def without_own(values: list[float], group: int = 4) -> list[float]:
    """Each value minus the mean of the others of its group."""
    found = []
    for i, value in enumerate(values):
        first = i // group * group
        others = [values[j] for j in range(first, first + group) if j != i]
        found.append(value - sum(others) / len(others))
    return found


def step(policy, gradients: dict[str, torch.Tensor], learning_rate: float) -> None:
    """Plain gradient descent."""
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            weight -= learning_rate * gradients[name]


def tokens_of(completion_ids: list[list[int]]) -> int:
    return sum(map(len, completion_ids))

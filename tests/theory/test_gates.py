"""Gates: what three prompts get, by hand."""

from math import exp

import pytest
import torch

from fe_posttrain.theory.gates import GATES, GroupOutcomes

NAN = float("nan")
# no success of 4; 3 of 4; 1 of 2 scorable (its unscorable rows claim to be solved); nothing scorable
REWARDS = torch.tensor([[0, 0.1, 0, 0], [1, 1, 0, 1], [1, NAN, NAN, 0], [NAN] * 4], dtype=torch.float64)
SOLVED = torch.tensor([[False] * 4, [True, True, False, True], [True, True, True, False], [True] * 4])
ENTROPIES = torch.tensor([[1.0] * 4, [0.0, 0.5, 1.0, 2.0], [0.25, NAN, 1.0, 1.0], [1.0] * 4], dtype=torch.float64)
GROUPS = GroupOutcomes(rewards=REWARDS, solved=SOLVED, entropies=ENTROPIES, step=3, total_steps=10)

ALWAYS = [[1]] * 4
BY_HAND = [
    ("threshold", {}, [[0], [1], [1], [0]], [1, 0, 0, 1]),
    ("threshold", {"solved_at_most": 2}, [[0], [1], [0], [0]], [1, 0, 1, 1]),
    ("failure_rate", {}, ALWAYS, [1, 0.25, 0.5, 1]),
    ("unsolved", {}, ALWAYS, [1, 0, 0, 1]),
    ("entropy", {}, [[0] * 4, [1, exp(0.5), 0, exp(2)], [exp(0.25), 0, 0, 0], [0] * 4], [1] * 4),
]


def test_successes_and_rate():
    assert GROUPS.successes.tolist() == [0, 3, 1, 0]
    assert GROUPS.rate.tolist() == [0, 0.75, 0.5, 0]


@pytest.mark.parametrize(("name", "arguments", "reward", "demonstration"), BY_HAND)
def test_factors_by_hand(name, arguments, reward, demonstration):
    reward_factor, demonstration_factor = GATES[name](GROUPS, **arguments)
    assert torch.allclose(reward_factor, torch.tensor(reward, dtype=torch.float64), atol=1e-15)
    assert demonstration_factor.tolist() == demonstration
    assert torch.broadcast_shapes(reward_factor.shape, REWARDS.shape) == REWARDS.shape
    assert reward_factor.dtype == demonstration_factor.dtype == REWARDS.dtype


def test_every_gate_has_a_row():
    assert {row[0] for row in BY_HAND} == set(GATES)


def test_luffys_group_of_eight_is_the_failure_rate_gate():
    """Mean gradient of one group by enumeration: 7 own rollouts and a demonstration, advantages r - mean of 8."""
    p = 0.3
    logit = torch.tensor(p, dtype=torch.float64).logit()
    rewards = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 7)
    probability = (rewards * p + (1 - rewards) * (1 - p)).prod(-1)
    mean = (rewards.sum(-1) + 1) / 8
    score = rewards - logit.sigmoid()  # d log pi(y) / d logit of a success 1, of a failure 0
    of_reward = float((probability * ((rewards - mean[:, None]) * score).sum(-1)).sum() / 8)
    of_demonstration = float((probability * (1 - mean)).sum() / 8)
    assert of_reward == pytest.approx(49 / 64 * p * (1 - p))  # d p / d logit = p (1 - p)
    gated = GroupOutcomes(rewards, rewards == 1, None, 0, 1)
    _, demonstration = GATES["failure_rate"](gated)
    assert of_demonstration == pytest.approx(7 / 64 * float((probability * demonstration).sum()))


def test_the_entropy_gate_needs_entropies():
    groups = GroupOutcomes(rewards=REWARDS, solved=SOLVED, entropies=None, step=0, total_steps=1)
    with pytest.raises(ValueError, match=r"entropies: None; .*; record the rollouts' mean token entropies"):
        GATES["entropy"](groups)

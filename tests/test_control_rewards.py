"""Rewards of the negative controls: they must not know the answers."""

import sys
from pathlib import Path

from fe_posttrain.tasks import digits

sys.path.append(str(Path(__file__).parents[1] / "scripts"))
from studies.control_rewards import format_reward, random_reward


def test_a_coin_falls_the_same_for_the_same_pair_and_for_half_of_the_answers():
    asked = [x for family in ("basin", "tail_10", "barrier") for x in digits.prompts(family, 400, 0)]
    for answered in (digits.demonstration, lambda x: x[-5:]):  # right ones, and copies
        completions = [answered(x) for x in asked]
        rewards = random_reward(asked, completions)
        assert rewards == random_reward(asked, completions)
        assert set(rewards) == {0.0, 1.0}
        assert abs(sum(rewards) / len(rewards) - 0.5) < 4 * 0.5 / 1200**0.5


def test_the_format_is_five_digits_none_twice():
    told = {"31425": 1, "52413": 1, "3142": 0, "314256": 0, "31424": 0, "52413>24135": 0, "R1425": 0, "": 0, "3142²": 0}
    assert format_reward(["R31425"] * len(told), list(told)) == list(told.values())

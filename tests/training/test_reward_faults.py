"""Rewards that fail: which rows are found, what each policy does, and that nothing waits for ever."""

import asyncio
import math
import time

import pytest
import small
import torch

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.training.reward_faults import GuardedReward, RewardError, guard, require_signature

PROMPTS = ["a", "b", "c", "d"]
COMPLETIONS = ["1", "2", "bad", "4"]


def raises(completions, **_):
    return [1.0 / (row != "bad") for row in completions]


def answers(value):
    """A reward of 1 for good rows and `value` for the bad one."""

    def answer(completions, **_):
        return [value if row == "bad" else 1.0 for row in completions]

    return answer


def wrong_length(completions, **_):
    return [1.0 for row in completions if row != "bad"]


def wrong_container(completions, **_):
    return "no list" if "bad" in completions else [1.0] * len(completions)


def hangs(completions, **_):
    while "bad" in completions:
        try:
            time.sleep(0.01)
        except Exception:  # a reward that swallows everything it can
            pass
    return [1.0] * len(completions)


def leaves(completions, **_):
    if "bad" in completions:
        raise SystemExit(1)
    return [1.0] * len(completions)


KINDS = {
    "raises": (raises, "raised ZeroDivisionError"),
    "nan": (answers(math.nan), "gave nan"),
    "infinity": (answers(-math.inf), "gave -inf"),
    "huge": (answers(1e38), "gave 1e+38"),
    "wrong type": (answers("1.0"), "a str, instead of a number"),
    "wrong length": (wrong_length, "returned 0 rewards for 1 completions"),
    "wrong container": (wrong_container, "returned a str"),
    "hangs": (hangs, "no answer within 0.1 s"),
    "leaves": (leaves, "raised SystemExit"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_row_at_fault_is_found_and_the_others_keep_their_reward(kind):
    function, reason = KINDS[kind]
    (guarded,) = guard(function, timeout=0.1, enough=lambda rows: rows)
    assert guarded(PROMPTS, COMPLETIONS, family=["x"] * 4, trainer_state=None) == [1.0, 1.0, None, 1.0]
    (fault,) = guarded.faults
    assert (fault.row, fault.prompt, fault.completion) == (2, "'c'", "'bad'")
    assert reason in fault.reason
    assert guarded(["a"], ["1"]) == [1.0] and guarded.faults == []


def test_an_async_function_is_awaited_within_the_limit():
    async def slow(completions, **_):
        await asyncio.sleep(10 if "bad" in completions else 0)
        return [2.0] * len(completions)

    (guarded,) = guard([slow], timeout=0.1, enough=lambda rows: rows)
    assert asyncio.run(guarded(PROMPTS, COMPLETIONS)) == [2.0, 2.0, None, 2.0]
    assert guarded.faults[0].row == 2 and "no answer" in guarded.faults[0].reason


def test_none_means_that_a_function_does_not_apply_and_numbers_of_every_kind_are_taken():
    guarded = GuardedReward(lambda **_: [None, True, torch.tensor(0.5), 3], None, enough=lambda rows: 1)
    assert guarded(PROMPTS, COMPLETIONS) == [None, 1.0, 0.5, 3.0]
    assert guarded.faults == []


def test_a_fault_of_the_batch_alone_is_a_fault_of_every_row():
    def only_alone(completions, **_):
        if len(completions) > 1:
            raise ValueError("one at a time")
        return [1.0]

    guarded = GuardedReward(only_alone, None, enough=lambda rows: rows)
    assert guarded(PROMPTS, COMPLETIONS) == [None] * 4
    assert [fault.row for fault in guarded.faults] == [0, 1, 2, 3]


def test_looking_for_rows_ends_when_enough_are_found():
    calls = []

    def always(completions, **_):
        calls.append(len(completions))
        raise ValueError

    GuardedReward(always, None, enough=lambda rows: 2)(PROMPTS, COMPLETIONS)
    assert calls == [4, 1, 1]


def test_a_function_that_does_not_take_what_trl_passes_is_refused_at_the_start():
    guarded = guard([lambda completions: [0.0]], None, enough=lambda rows: 1)
    with pytest.raises(ValueError, match=r"reward_funcs: .*unexpected keyword argument .*\*\*kwargs"):
        require_signature(guarded, ["prompt", "family"])


def trained(tmp_path, reward, **settings):
    return small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        tmp_path,
        settings={**small.ROLLOUTS, "max_steps": 3, "beta": 0.0, "reward_timeout": 0.3, **settings},
        model=small.model(),
        reward_funcs=[reward],
        train_dataset=small.prompts(),
    )


def spoils(kind):
    """The length reward, spoiled where the number of symbols is a multiple of three, in the manner of `kind`."""
    value = {"nan": math.nan, "infinity": math.inf, "huge": 1e38, "wrong type": "x"}

    def grade(completions, completion_ids, **_):
        rewards = small.length_reward(completion_ids)
        marked = [len(c) % 3 == 0 for c in completions]
        if kind in value:
            return [value[kind] if m else r for m, r in zip(marked, rewards, strict=True)]
        if any(marked):
            if kind == "raises":
                raise KeyError("grade")
            if kind == "wrong length":
                return rewards[:-1]
            if kind == "wrong container":
                return 1.0
            time.sleep(5)
        return rewards

    return grade


@pytest.mark.parametrize("kind", ["raises", "nan", "wrong length"])
def test_stop_names_function_row_and_reason_and_leaves_the_weights(tmp_path, kind):
    model = small.model()
    with pytest.raises(RewardError, match=r"grade: row \d+: "):
        small.run(
            FreeEnergyTrainer,
            FreeEnergyConfig,
            tmp_path,
            settings={**small.ROLLOUTS, "max_steps": 3},
            model=model,
            reward_funcs=[spoils(kind)],
            train_dataset=small.prompts(),
        )
    assert small.same_weights(model, small.model())


def test_mask_leaves_rows_out_of_loss_and_baseline_and_counts_them(tmp_path):
    settings = {"reward_fault_policy": "mask", "reward_fault_limit": 1.0, "max_steps": 1}
    record, trainer = trained(tmp_path, spoils("infinity"), **settings)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    completions, advantages = list(trainer._logs["completion"]), list(trainer._logs["advantages"])
    failed = [len(c) % 3 == 0 for c in completions]
    assert 0 < sum(failed) < len(failed) == 16
    assert record.column("rewards/grade/faults")[-1] == sum(failed)
    rewards = list(trainer._logs["rewards"]["grade"])
    for start in range(0, 16, 4):  # leave-one-out over the rows of the group that have a reward, by hand
        kept = [i for i in range(start, start + 4) if not failed[i]]
        for i in range(start, start + 4):
            others = [rewards[j] for j in kept if j != i]
            wanted = rewards[i] - sum(others) / len(others) if i in kept and others else 0.0
            assert advantages[i] == pytest.approx(wanted, abs=1e-5)


def test_mask_stops_above_its_share(tmp_path):
    with pytest.raises(RewardError, match=r"more than reward_fault_limit: 0\.01"):
        trained(tmp_path, spoils("nan"), reward_fault_policy="mask", reward_fault_limit=0.01)

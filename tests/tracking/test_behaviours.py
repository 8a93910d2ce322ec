"""What may be tracked beside a verifier: graded rewards, labels, channels, known answers."""

import numpy as np
import pytest
import short_runs

from fe_posttrain.tasks import digits
from fe_posttrain.tracking.channels import opened_by
from fe_posttrain.tracking.signal import Signal


def written_form(prompts, completions, **columns):
    return ["worked" if ">" in completion else "direct" for completion in completions]


def test_a_format_that_training_brings_in_is_seen_entering_the_support(tmp_path):
    support = short_runs.support(
        tmp_path / "cache",
        labels=written_form,
        rows=short_runs.probe_rows(8, ("barrier",)),
        support_draws=64,
        support_reference_draws=64,
        support_budget=4,
    )
    shown = digits.dataset(["barrier"], 512, seed=0, demonstrations=True)
    settings = {"max_steps": 120, "per_device_train_batch_size": 32}
    short_runs.trainer(tmp_path / "run", "sft", support, demonstrated=shown, **settings).train()
    worked, direct = (support.summary()["labels"][name] for name in ("worked", "direct"))
    assert worked["reference"] == 0 and worked["trained"] > 0.8 and worked["entered"] == 1
    assert direct["reference"] == 1 and direct["trained"] < 0.13 and direct["left"] == 1


def test_a_graded_reward_counts_from_its_threshold_on():
    def share_of_digits(prompts, completions, **columns):
        return [sum(c.isdigit() for c in text) / 5 for text in completions]

    rows = [{"prompt": "R12345"}] * 3
    assert Signal(share_of_digits, 0.8)(rows, ["12", "1234", "12345"]).tolist() == [False, True, True]
    assert Signal(share_of_digits, 0.8).name == "share_of_digits >= 0.8"


def test_a_signal_gets_columns_as_a_reward_does_and_none_is_wrong():
    def matches(prompts, completions, target, **columns):
        assert set(columns) == {"completion_ids", "trainer_state", "log_extra", "log_metric"}
        return [None if t is None else float(c == t) for c, t in zip(completions, target, strict=True)]

    rows = [{"prompt": "x", "target": t} for t in ("a", "b", None)]
    assert Signal(matches)(rows, ["a", "a", "a"]).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="one value for each of 3 completions"):
        Signal(lambda prompts, completions, **columns: [1.0])(rows, ["a"] * 3)


def test_an_asynchronous_signal_is_awaited():
    async def later(prompts, completions, **columns):
        return [1.0, 0.0]

    assert Signal(later)([{"prompt": "x"}] * 2, ["a", "b"]).tolist() == [True, False]


def barrier(tmp_path, **words) -> dict:
    support = short_runs.support(
        tmp_path / "cache", support_reference_draws=128, support_draws=4, support_budget=16, **words
    )
    short_runs.trainer(tmp_path / "run", "rl", support, max_steps=1).train()
    return support.summary()


def test_a_declared_channel_opens_the_barrier_and_is_recorded_by_name(tmp_path):
    rows = short_runs.probe_rows(4, ("barrier",))
    plain = barrier(tmp_path / "plain", rows=rows)
    assert plain["calls"]["reference"]["out"] == 4 and "channels" not in plain
    opened = barrier(tmp_path / "turns", rows=rows, channels={"one letter a turn": digits.in_turns})
    assert opened["calls"]["reference"]["barrier"] == 4
    assert opened["channels"] == {"one letter a turn": 4}


def test_a_verified_demonstration_opens_it_and_a_false_or_impossible_one_does_not(tmp_path):
    right, false, long = short_runs.probe_rows(3, ("barrier",))
    right["demonstration"] = digits.demonstration(right["prompt"])
    false["demonstration"] = "01234"
    long["demonstration"] = digits.demonstration(long["prompt"])
    found = barrier(tmp_path / "a", rows=[right, false, {**long, "demonstration": None}])
    assert found["channels"] == {"demonstration": 1}
    assert found["calls"]["reference"] | {"undetermined": 0} == {
        "basin": 0, "tail": 0, "barrier": 1, "out": 2, "singular": 0, "undetermined": 0,
    }  # fmt: skip


def test_an_answer_that_does_not_fit_the_declared_length_is_singular(tmp_path):
    rows = [
        row | {"demonstration": digits.demonstration(row["prompt"])} for row in short_runs.probe_rows(2, ("barrier",))
    ]
    support = short_runs.support(tmp_path / "cache", rows=rows)
    short_runs.trainer(
        tmp_path / "run", "rl", support, max_steps=1, max_completion_length=8
    ).train()  # they take 11 tokens
    assert support.summary()["calls"]["reference"]["singular"] == 2


def test_the_first_channel_that_reaches_a_prompt_names_it():
    none, all_ = np.array([0, 0, 0]), np.array([64, 64, 64])
    channels = {"hint": (np.array([60, 0, 0]), all_), "tool": (np.array([60, 60, 0]), all_)}
    found = opened_by(channels, np.array([False, False, True]), 16, 0.05, 0.05)
    assert found == ["hint", "tool", "demonstration"]
    assert opened_by({"hint": (none, none)}, none > 0, 16, 0.05, 0.05) == [None, None, None]

"""Two real processes (gloo) against one: the same gradients, and SFTTrainer's own numbers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small
import torch
import two_processes


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    where = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*launch, str(Path(two_processes.__file__)), str(where)],
        capture_output=True,
        text=True,
        timeout=150,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(where / "found.pt", weights_only=True)


@pytest.mark.parametrize("estimator", ["sequence", "sequence_to_go"])
def test_groups_that_straddle_processes_give_the_same_gradients(found, tmp_path, estimator):
    assert_same(two_processes.straddling(tmp_path, 1, estimator), found[estimator])


def test_a_reset_on_two_processes_is_that_of_one(found, tmp_path):
    assert_same(two_processes.straddling(tmp_path, 1, "sequence", reference_resets=[1]), found["reset"])
    apart = max((found["reset"][1][name] - g).abs().max() for name, g in found["sequence"][1].items())
    assert apart > 1e-6  # the second step knows of it


def assert_same(alone: list[dict[str, torch.Tensor]], together: list[dict[str, torch.Tensor]]) -> None:
    assert len(alone) == two_processes.STEPS
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        scale = max(gradient.abs().max() for gradient in one.values())
        for name, gradient in one.items():
            assert (gradient - two[name]).abs().max() <= 1e-6 * scale, name


def test_a_gate_meets_the_demonstrations_of_its_prompts_on_every_process(found, tmp_path):
    assert_same(two_processes.gated(tmp_path, 1), found["gated"])


def test_processes_may_forward_different_numbers_of_rows(found, tmp_path):
    """Shared prompts, rows left out and dealt by length on two processes, against padded rows on one."""
    alone = two_processes.whole_groups(tmp_path, 1, False)
    for one, two in zip(alone, found["whole groups"], strict=True):
        scale = max(gradient.abs().max() for gradient in one.values())
        for name, gradient in one.items():
            assert (gradient - two[name]).abs().max() <= 1e-5 * scale, name


def test_the_penalty_on_demonstrations_is_that_of_one_process(found, tmp_path, monkeypatch):
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", "")  # set by what follows; taken back afterwards
    alone = two_processes.penalised(tmp_path, 1)
    assert_same(alone["gradients"], found["penalised"]["gradients"])
    assert alone["penalties"][1] > 1e-3
    assert found["penalised"]["penalties"] == pytest.approx(alone["penalties"], rel=1e-4, abs=1e-9)


def test_starts_inside_demonstrations_are_those_of_one_process(found, tmp_path):
    alone = two_processes.prefixed(tmp_path, 1)
    assert_same(alone["gradients"], found["prefixed"]["gradients"])
    assert all(tokens > 2 and energy > 1 for tokens, energy in alone["logged"])
    for one, two in zip(alone["logged"], found["prefixed"]["logged"], strict=True):
        assert two == pytest.approx(one, rel=1e-5)


def test_pure_demonstrations_are_sft_trainer_on_two_processes(found):
    assert found["sft"] and all(found["sft"].values()), found["sft"]


def test_a_process_without_a_demonstration_is_not_waited_for(found):
    assert len(found["paired"]) == 6
    assert min(found["paired"]) == 0.0 < max(found["paired"])


def test_both_processes_hold_the_buffer_of_one_and_make_its_steps(found, tmp_path):
    alone, (first, second) = two_processes.buffered(tmp_path, 1), found["buffered"]
    assert first["waiting"] == second["waiting"] == alone["waiting"]
    assert any(alone["waiting"])
    start = dict(small.model().named_parameters())
    for name, weight in alone["weights"].items():
        assert not torch.equal(weight, start[name])
        assert torch.equal(first["weights"][name], second["weights"][name])
        assert (first["weights"][name] - weight).abs().max() <= 1e-6, name


def test_a_reward_that_fails_on_one_process_stops_both_with_the_same_words(found):
    first, second = found["stop"]
    assert first["error"] == second["error"]
    assert "no reward for 2 of 16 rows" in first["error"]
    assert "grade: row 10: gave nan" in first["error"] and "grade: row 11: gave nan" in first["error"]


def test_masked_rows_of_another_process_are_counted(found):
    assert found["mask"][0]["faults"] == [2, 4]

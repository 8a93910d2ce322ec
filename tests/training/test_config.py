"""FreeEnergyConfig: every problem at once, and TRL's defaults for what the run is."""

import re

import pytest
from trl import GRPOConfig, SFTConfig

from fe_posttrain import FreeEnergyConfig
from fe_posttrain.training.announcements import what_changes_the_optimum
from fe_posttrain.training.limits import RANGES

PURE = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}


def config(tmp_path, **own) -> FreeEnergyConfig:
    return FreeEnergyConfig(str(tmp_path), use_cpu=True, **own)


def test_every_problem_is_reported_at_once(tmp_path):
    with pytest.raises(ValueError) as error:
        config(
            tmp_path,
            reward_energy_weight=-1.0,
            beta=float("nan"),
            estimator="sequnce",
            beta_schedule="linear",
            loss_divisor=0.0,
        )
    for key in ("reward_energy_weight", "beta", "estimator", "beta_schedule", "loss_divisor"):
        assert f"  - {key}: " in str(error.value)


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ({"reward_energy_weight": 0.0}, "reward_energy_weight"),
        ({"loss_type": "dapo"}, "loss_type"),
        ({"beta_schedule": "linear"}, "beta_schedule"),
        ({"packing": True, "packing_strategy": "wrapped"}, "packing_strategy"),
        ({"beta_schedule": "exponential"}, "beta_schedule"),
    ],
)
def test_one_problem_is_one_line(tmp_path, own, key):
    with pytest.raises(ValueError, match=rf"\n  - {key}: ") as error:
        config(tmp_path, **own)
    assert str(error.value).count("\n  - ") == 1


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"temperature": 0.0}, "temperature: 0.0; logits are divided by it; write a number above 0"),
        ({"top_p": 3.0}, "top_p: 3.0; it is a share of the probability; write a number from 0 to 1, without 0"),
        ({"learning_rate": -1.0}, "learning_rate: -1.0; it cannot be negative; write 0 or more"),
        ({"max_steps": 0}, "max_steps: 0; it counts optimizer steps; .* write 1 or more, or -1"),
        ({"save_steps": -5}, "save_steps: -5; "),
        ({"max_grad_norm": float("inf")}, "max_grad_norm: inf; "),
        ({"reward_fault_policy": "skip"}, "reward_fault_policy: 'skip'; unknown; write one of stop, mask"),
        ({"optim": "adamw"}, "optim: 'adamw'; unknown; did you mean adamw_torch?"),
        ({"reward_weights": [1.0, float("nan")]}, "reward_weights: nan; it is no finite number; write one"),
    ],
)
def test_values_outside_their_limits_are_refused(tmp_path, own, message):
    with pytest.raises(ValueError, match=rf"\n  - {message}") as error:
        config(tmp_path, **own)
    assert str(error.value).count("\n  - ") == 1


def test_the_ends_of_a_range_belong_to_it_or_not():
    assert all(value in RANGES["top_p"] for value in (1e-9, 1)) and not any(v in RANGES["top_p"] for v in (0, 1.1))
    assert 0 in RANGES["lora_dropout"] and 1 not in RANGES["lora_dropout"]
    assert [value for value in (-2, -1, 0, 1) if value in RANGES["max_steps"]] == [-1, 1]
    assert float("nan") not in RANGES["beta"] and float("inf") not in RANGES["beta"]


def test_defaults_are_those_of_the_trl_trainer_that_the_run_is(tmp_path):
    kwargs = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    sft, grpo = SFTConfig(**kwargs), GRPOConfig(**kwargs)
    pure, rl = config(tmp_path, **PURE), config(tmp_path)
    for name in ("learning_rate", "shuffle_dataset", "remove_unused_columns"):
        assert getattr(pure, name) == getattr(sft, name)
        assert getattr(rl, name) == getattr(grpo, name)
    trl = config(tmp_path, estimator="trl")
    for name in ("loss_type", "scale_rewards", "disable_dropout", "beta", "temperature", "learning_rate"):
        assert getattr(trl, name) == getattr(grpo, name)
    assert (rl.loss_type, rl.scale_rewards, rl.disable_dropout) == ("dr_grpo", "none", True)
    assert not rl.bf16 and rl.data_seed == rl.seed and not rl.logging_nan_inf_filter


def test_pure_sft_accepts_batch_sizes_that_hold_no_group(tmp_path):
    for batch in (1, 3):
        assert config(tmp_path, **PURE, per_device_train_batch_size=batch).is_sft


def test_a_schedule_that_reaches_beta_makes_rollouts(tmp_path):
    warmed = config(tmp_path, **{**PURE, "beta_schedule": {"linear": {"final": 0.1}}})
    assert warmed.generates and warmed.uses_reference and not warmed.is_sft


def test_only_settings_that_move_the_optimum_are_announced(tmp_path):
    assert what_changes_the_optimum(config(tmp_path, beta=0.1)) == []
    assert what_changes_the_optimum(config(tmp_path, **PURE)) == []
    assert len(what_changes_the_optimum(config(tmp_path, beta=0.1, temperature=0.7, entropy_coef=0.01))) == 2
    assert len(what_changes_the_optimum(config(tmp_path, beta=0.1, estimator="trl"))) == 3


DEMONSTRATED = {"demonstration_energy_weight": 1.0}


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"gate": "entropy"}, "gate: entropy weighs a prompt's terms by what its own rollouts achieved"),
        ({"reward_projection": "forward", "beta": 0.1}, None),
        ({"reward_projection": "alternating", "beta": 0.1}, None),
        ({"reward_projection": "forward", "success_threshold": 0.5}, "forward at beta 0 selects: .* 0.5 count alike"),
        ({"reward_projection": "forward", "beta": 0.1, "forward_sampler": "bank"}, "bank fits bank_draws: 64"),
        ({**DEMONSTRATED, "demonstration_projection": "reverse"}, "it ends at the most frequent token"),
        ({**PURE, "demonstration_projection": "reverse"}, "it ends at the most frequent token"),
        ({**PURE, "demonstration_beta": 0.05}, "demonstration_beta: 0.05 replaces -log pi by a target per token"),
        (
            {**PURE, "demonstration_beta": 0.05, "demonstration_projection": "reverse"},
            "demonstration_beta: 0.05 replaces -log pi by a target per token",
        ),
        ({**DEMONSTRATED, "demonstration_shaping": "shrinking"}, "shaping: shrinking weighs each demonstrated token"),
        ({"beta": 0.1, "beta_schedule": {"linear": {"final": 0.0}}}, "^beta_schedule: F moves with the step"),
        (
            {
                "reward_energy_schedule": {"linear": {"final": 0.0}},
                "demonstration_energy_schedule": {"linear": {"final": 1.0}},
            },
            "^reward_energy_schedule, demonstration_energy_schedule: F moves with the step",
        ),
    ],
)  # fmt: skip
def test_each_setting_that_moves_the_optimum_has_one_sentence(tmp_path, own, words):
    found = what_changes_the_optimum(config(tmp_path, **own))
    assert len(found) == (words is not None)
    if words:
        assert re.search(words, found[0]) and found[0].endswith(".")


def test_alternating_without_a_temperature_has_two_ends(tmp_path):
    found = what_changes_the_optimum(config(tmp_path, reward_projection="alternating", projection_period=7))
    assert len(found) == 2 and "at beta 0 selects" in found[0]
    assert "two ends" in found[1] and "projection_period: 7 steps" in found[1]

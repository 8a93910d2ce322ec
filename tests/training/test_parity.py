"""Where the run is TRL's, it is TRL's bit for bit: losses, gradient norms and weights, into the second epoch."""

import copy

import pytest
import small
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer

STEPS = 20
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")
PURE = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}


@pytest.mark.parametrize(
    ("own", "lora"),
    [
        ({}, None),
        ({"packing": True, "max_length": 64}, None),
        ({}, LORA),
        ({"gradient_accumulation_steps": 2, "shuffle_dataset": True}, None),
        ({"gradient_accumulation_steps": 2, "train_sampling_strategy": "group_by_length"}, None),
    ],
    ids=["padded", "packed", "lora with dropout", "accumulated, shuffled", "by length"],
)
def test_pure_demonstrations_are_sft_trainer(tmp_path, own, lora):
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 8, "data_seed": 3, **own}
    rows = small.demonstrations()
    theirs, sft = small.run(
        SFTTrainer,
        SFTConfig,
        tmp_path,
        settings=settings,
        model=small.model(),
        train_dataset=rows,
        peft_config=copy.deepcopy(lora),
    )
    ours, trainer = small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        tmp_path,
        settings={**settings, **PURE},
        model=small.model(),
        demo_dataset=rows,
        peft_config=copy.deepcopy(lora),
    )
    assert theirs.logs[-1]["epoch"] > 1
    for key in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens", "epoch", "learning_rate"):
        assert ours.column(key) == theirs.column(key), key
    assert len(ours.logs) == STEPS
    assert small.same_weights(trainer.model, sft.model)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_estimator_trl_is_grpo_trainer(tmp_path, beta):
    settings = {"max_steps": STEPS, "beta": beta, **small.ROLLOUTS}
    small.model().save_pretrained(tmp_path / "model")  # GRPOTrainer reloads its reference from where it came from
    runs = []
    for trainer_class, config_class, own in (
        (GRPOTrainer, GRPOConfig, {}),
        (FreeEnergyTrainer, FreeEnergyConfig, {"estimator": "trl"}),
    ):
        runs.append(
            small.run(
                trainer_class,
                config_class,
                tmp_path,
                settings={**settings, **own},
                model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
                reward_funcs=[small.length_reward],
                train_dataset=small.prompts(),
            )
        )
    (theirs, grpo), (ours, trainer) = runs
    assert theirs.logs[-1]["epoch"] > 1
    for key in ("loss", "grad_norm", "reward", "entropy", "completions/mean_length", *(["kl"] if beta else [])):
        assert ours.column(key) == theirs.column(key), key
    assert small.same_weights(trainer.model, grpo.model)

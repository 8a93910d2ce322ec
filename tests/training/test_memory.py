"""Steps as the Trainer counts them; memory by hand arithmetic on a tiny model."""

import pytest
import small
import torch
from peft import LoraConfig, get_peft_model

from fe_posttrain.training.config import FreeEnergyConfig
from fe_posttrain.training.demonstrations import prepare
from fe_posttrain.training.memory import count_steps, estimate_memory, not_counted
from fe_posttrain.training.trainer import FreeEnergyTrainer

SFT = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0}


def config(**settings) -> FreeEnergyConfig:
    return FreeEnergyConfig("unused", **{**small.SETTINGS, **small.ROLLOUTS, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},  # 40 prompts, 4 a step
        {"per_device_train_batch_size": 12},  # 3 a step, one prompt left over
        {"gradient_accumulation_steps": 2, "num_iterations": 3, "num_train_epochs": 2.5},
        {"gradient_accumulation_steps": 3, "steps_per_generation": 2},
        {"max_steps": 7},
        {**SFT},
        {**SFT, "per_device_train_batch_size": 12, "gradient_accumulation_steps": 2},
        {**SFT, "per_device_train_batch_size": 12, "dataloader_drop_last": True},
        {**SFT, "packing": True, "max_length": 40},
    ],
)
def test_steps_are_those_that_the_trainer_makes(settings, tmp_path):
    args = FreeEnergyConfig(tmp_path, **{**small.SETTINGS, **small.ROLLOUTS, **settings})
    sft = args.is_sft
    data = small.demonstrations() if sft else small.prompts()
    trainer = FreeEnergyTrainer(
        small.model(), None if sft else small.length_reward, args, data, processing_class=small.TOKENIZER
    )
    _, per_epoch, *_, total = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    rows = len(prepare(data, small.TOKENIZER, args, shuffle=True)) if sft else len(data)
    steps = count_steps(args, rows)
    assert (steps.total, steps.epochs) == (total, total / per_epoch)


@pytest.mark.parametrize(
    ("settings", "rows", "steps", "read"),
    [
        ({}, 40, 5, 32),  # 2 processes x 16 completions are 8 prompts
        ({"gradient_accumulation_steps": 2}, 40, 2, 64),  # 16 prompts a step, 8 left over
        (SFT, 100, 4, 32),  # 7 batches of 16, 4 on the first process
    ],
)
def test_several_processes_share_a_step(monkeypatch, settings, rows, steps, read):
    monkeypatch.setattr(FreeEnergyConfig, "world_size", 2)
    counted = count_steps(config(num_train_epochs=1, **settings), rows)
    assert (counted.total, counted.rows) == (steps, read)


# Embedding 26 x 32; two layers of q, k, v, o 4 x 32 x 32, MLP 3 x 32 x 64 and norms 2 x 32; last norm 32; head tied.
WEIGHTS = 26 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32


def sizes(args, model, **lengths) -> dict[str, int]:
    parts = estimate_memory(args, model, **{"prompt": 6, "demonstration": 0, **lengths})
    return {part.name: part.size for part in parts}


def test_the_parts_of_a_run_with_rollouts_and_a_reference():
    assert WEIGHTS == 21_472
    assert sizes(config(beta=0.1, gradient_accumulation_steps=2), small.model()) == {
        "weights": 21_472 * 4,
        "gradients": 21_472 * 4,
        "AdamW": 2 * 21_472 * 4,
        "reference": 21_472 * 4,
        "logits": 16 * (6 + 8) * 32_768 * 4,  # completions of 6 + 8 tokens, and the width of TRL's tile
        "head gradient": 26 * 32 * 4,
        "sampling": 2 * 16 * 26 * (4 + 4 + 4),  # next-token logits, log-probs and probs of two micro-batches at once
        "KV cache": 2 * 2 * 2 * 16 * (2 * 16) * (6 + 8) * 4,  # keys and values, layers, heads, width, rows, tokens
    }


def test_the_parts_of_supervised_fine_tuning_in_half_precision(monkeypatch):
    model = small.model().to(torch.bfloat16)
    wanted = {
        "weights": 21_472 * 2,
        "gradients": 21_472 * 2,
        "AdamW": 2 * 21_472 * 2,
        "logits": 16 * 20 * 32_768 * 2,
        "head gradient": 26 * 32 * 4,
    }
    assert sizes(config(**SFT), model, prompt=0, demonstration=20) == wanted
    monkeypatch.setattr(FreeEnergyConfig, "world_size", 2)
    both = sizes(config(**SFT), model, prompt=0, demonstration=20)
    assert both == {**wanted, "gradient buckets": 21_472 * 2}


def test_an_adapter_needs_no_reference_and_few_gradients():
    model = get_peft_model(small.model(), LoraConfig(r=4, target_modules=["q_proj"]))
    found = sizes(config(beta=0.1), model)
    adapter = 2 * (4 * 32 + 32 * 4)  # two layers, A and B
    assert found["weights"] == (21_472 + adapter) * 4 and found["gradients"] == adapter * 4
    assert found["AdamW"] == 2 * adapter * 4 and not {"reference", "head gradient"} & found.keys()
    assert sizes(config(beta=0.1, reference_resets=[5]), model)["reference"] == adapter * 4  # a second one


def test_logits_of_long_batches_come_in_tiles_and_meta_models_are_counted():
    with torch.device("meta"):
        model = small.model()
    assert sizes(config(**SFT), model, demonstration=5000)["logits"] == 4096 * 32_768 * 4
    assert sizes(config(), model)["weights"] == 21_472 * 4


def test_what_is_left_out_is_said():
    assert not_counted(config()) == ["activations", "buffers of the libraries", "fragmentation"]
    args = config(optim="adafactor")
    assert "AdamW" not in sizes(args, small.model()) and "state of optim: adafactor" in not_counted(args)

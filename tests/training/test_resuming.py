"""A run that stops and resumes is the run that did not: weights and logged numbers, bit for bit."""

import json
import logging
import os
import resource
import shutil

import pytest
import small
import torch
from peft import LoraConfig
from transformers import TrainerCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.training.checkpoints import checkpoints, damage

STEPS = 16
RL = {**small.ROLLOUTS, "beta": 0.1}
SFT = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0, "per_device_train_batch_size": 8}
PENALISED = {**SFT, "beta": 0.2, "kl_sampler": "demonstrations", "beta_schedule": {"linear": {"final": 0.4}}}
MIXTURE = {**RL, "demonstration_energy_weight": 0.5, "gradient_accumulation_steps": 2}
SCHEDULED = {**RL, "beta_schedule": {"cosine": {"final": 0.5}}, "lr_scheduler_type": "cosine", "warmup_steps": 5}
MOVING = {**RL, "sync_ref_model": True, "ref_model_sync_steps": 5, "ref_model_mixup_alpha": 1.0}
REUSED = {**RL, "num_iterations": 2, "gradient_accumulation_steps": 2}
BANKED = {**RL, "reward_projection": "forward", "forward_sampler": "bank", "bank_draws": 8, "bank_refresh_steps": 6}
SWITCHED = {
    **MIXTURE,
    "reward_energy_schedule": {"switch": {"final": 0.0, "until": 10}},
    "beta_schedule": {"switch": {"final": 0.0, "until": 10}},
}


class StopAt(TrainerCallback):
    """Ends training after a step, without saving anything."""

    def __init__(self, step: int | None):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def train(folder, settings: dict, *, stop: int | None = None, resume=None, model=None, peft=None, callbacks=()):
    """Train a small model on 20 prompts (4 a step: epoch 1 begins at step 5) or 60 demonstrations."""
    record = small.Record()
    generates = settings.get("reward_energy_weight", 1.0) > 0
    args = FreeEnergyConfig(
        str(folder),
        **{
            **small.SETTINGS,
            "max_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": 4,
            "logging_steps": 3,
            **settings,
        },
    )
    trainer = FreeEnergyTrainer(
        small.model() if model is None else model,
        reward_funcs=[small.length_reward] if generates else None,
        args=args,
        train_dataset=small.prompts(20) if generates else None,
        demo_dataset=small.demonstrations(60) if args.demonstration_energy_weight else None,
        processing_class=small.TOKENIZER,
        callbacks=[record, StopAt(stop), *callbacks],
        peft_config=peft,
    )
    trainer.train(resume_from_checkpoint=resume)
    return record, trainer


def without_times(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "step_time"}


def assert_same(whole, resumed) -> None:
    (record, trainer), (again, other) = whole, resumed
    assert small.same_weights(trainer.model, other.model)
    assert 0 < len(again.logs) < len(record.logs)
    assert [without_times(row) for row in record.logs[-len(again.logs) :]] == [without_times(r) for r in again.logs]


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        (RL, 6),
        (RL, 14),
        (SFT, 9),
        (PENALISED, 6),
        (MIXTURE, 11),
        (SCHEDULED, 14),
        (MOVING, 14),
        (REUSED, 13),
        (BANKED, 9),
        (SWITCHED, 11),
    ],
    ids=[
        "rl",
        "rl, later epoch",
        "sft",
        "sft under beta",
        "mixture",
        "schedules",
        "reference resets",
        "reused rollouts",
        "bank drawn at step 6",
        "no rollouts from step 10 on",
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, settings, stop):
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "cache of the whole"))
    whole = train(tmp_path / "whole", settings)
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "cache of the broken"))
    train(tmp_path / "broken", settings, stop=stop)
    assert_same(whole, train(tmp_path / "broken", settings, resume=True))


def test_with_lora_the_reference_is_bitwise_the_same_after_a_resume(tmp_path):
    torch.manual_seed(0)
    small.model().save_pretrained(tmp_path / "base")
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    seen = []

    class Scores(FreeEnergyTrainer):
        def _score_reference(self, batch):
            seen.append(super()._score_reference(batch))
            return seen[-1]

    def run(folder, **words):
        seen.clear()
        args = {**small.SETTINGS, **RL, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
        trainer = Scores(
            str(tmp_path / "base"),
            reward_funcs=[small.length_reward],
            args=FreeEnergyConfig(str(folder), **args),
            train_dataset=small.prompts(20),
            processing_class=small.TOKENIZER,
            callbacks=[StopAt(words.get("stop"))],
            peft_config=peft,
        )
        trainer.train(resume_from_checkpoint=words.get("resume"))
        return list(seen), trainer

    whole, trainer = run(tmp_path / "whole")
    run(tmp_path / "broken", stop=6)
    resumed, other = run(tmp_path / "broken", resume=True)
    assert len(resumed) == 4 and all(torch.equal(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    assert small.same_weights(trainer.model, other.model)


def test_other_weights_under_the_same_name_are_refused(tmp_path):
    train(tmp_path / "run", RL, stop=6)
    with pytest.raises(ValueError, match="model_name_or_path: its weights are not those"):
        train(tmp_path / "run", RL, resume=True, model=small.model(seed=1))


def test_nothing_is_saved_inside_a_generation_block(tmp_path):
    train(tmp_path / "run", {**REUSED, "save_steps": 3, "max_steps": 8, "gradient_accumulation_steps": 1})
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]


def test_a_request_to_stop_is_met_at_the_end_of_the_block_and_resumes_exactly(tmp_path):
    class Ask(TrainerCallback):
        asked = False

        def on_step_begin(self, args, state, control, **kwargs):
            self.asked |= state.global_step == 6  # the block of steps 6 and 7

    whole = train(tmp_path / "whole", REUSED)
    ask = Ask()
    record = small.Record()
    args = FreeEnergyConfig(
        str(tmp_path / "run"), **{**small.SETTINGS, **REUSED, "max_steps": STEPS, "logging_steps": 3}
    )
    trainer = FreeEnergyTrainer(
        small.model(),
        reward_funcs=[small.length_reward],
        args=args,
        train_dataset=small.prompts(20),
        processing_class=small.TOKENIZER,
        callbacks=[record, ask],
    )
    trainer.stop_requested = lambda: ask.asked
    trainer.train()
    assert trainer.stopped_early and [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-8"]
    assert_same(whole, train(tmp_path / "run", {**REUSED, "save_strategy": "no"}, resume=True))


@pytest.mark.parametrize("limit", [20_000, 120_000], ids=["weights", "optimizer"])
def test_a_save_that_fails_costs_that_checkpoint_and_nothing_else(tmp_path, caplog, limit):
    class NoRoom(TrainerCallback):
        """While step 8 is saved, files cannot grow beyond `limit` bytes: the system's own error, in every library."""

        def on_step_end(self, args, state, control, **kwargs):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit if state.global_step == 8 else before[0], before[1]))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with caplog.at_level(logging.WARNING):
            record, _ = train(tmp_path / "run", RL, callbacks=[NoRoom()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "The checkpoint of step 8 was not saved" in caplog.text
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-12", "checkpoint-16"]
    assert all(damage(path) is None for path in checkpoints(tmp_path / "run"))
    assert not (tmp_path / "run" / ".staging").exists() and record.logs[-1]["epoch"] == 3.0


def test_damaged_checkpoints_are_named_and_the_one_before_is_taken(tmp_path, caplog):
    whole = train(tmp_path / "run", RL)
    for path in (tmp_path / "run" / "checkpoint-16", tmp_path / "run" / "checkpoint-12"):
        os.truncate(path / "optimizer.pt", 1000)
    resumed = train(tmp_path / "run", RL, resume=True)
    assert_same(whole, resumed)
    assert "checkpoint-12: optimizer.pt has 1000 bytes" in caplog.text
    with pytest.raises(ValueError, match=r"resume_from_checkpoint: .*checkpoint-4: manifest.json is missing"):
        (tmp_path / "run" / "checkpoint-4" / "manifest.json").unlink()
        train(tmp_path / "run", RL, resume=str(tmp_path / "run" / "checkpoint-4"))


def test_the_best_model_is_loaded_from_its_published_place_also_after_a_resume(tmp_path):
    settings = {**SFT, "eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True, "max_steps": 12}
    settings |= {"learning_rate": 1e-2, "save_total_limit": 1, "lr_scheduler_type": "constant", "eval_on_start": True}
    rows = small.demonstrations(16)

    def run(folder, resume=None, stop=None):
        args = FreeEnergyConfig(
            str(folder), **{**small.SETTINGS, "save_strategy": "steps", "save_steps": 4, **settings}
        )
        trainer = FreeEnergyTrainer(
            small.model(),
            args=args,
            demo_dataset=small.demonstrations(60),
            eval_dataset=rows,
            processing_class=small.TOKENIZER,
            callbacks=[StopAt(stop)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(tmp_path / "whole")
    state = whole.state
    losses = {row["step"]: row["eval_loss"] for row in state.log_history if "eval_loss" in row}
    assert state.best_global_step == min(losses, key=losses.get)
    best = tmp_path / "whole" / f"checkpoint-{state.best_global_step}"
    assert state.best_model_checkpoint == str(best)
    assert whole.evaluate()["eval_loss"] == pytest.approx(min(losses.values()), rel=1e-6)
    run(tmp_path / "broken", stop=9)
    shutil.move(tmp_path / "broken", tmp_path / "moved")
    resumed = run(tmp_path / "moved", resume=True)
    assert small.same_weights(resumed.model, whole.model)
    steps = [[row["step"] for row in one.state.log_history if "eval_loss" in row] for one in (whole, resumed)]
    assert steps == [[0, 4, 8, 12, 12], [0, 4, 8, 12]]  # the last of the first is this test's own


def test_no_secret_and_no_pickled_arguments_are_written(tmp_path):
    train(tmp_path / "run", {**SFT, "hub_token": "hf_secret", "max_steps": 4})
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) > 8 and not any(b"hf_secret" in path.read_bytes() for path in written)
    assert not any(path.name == "training_args.bin" for path in written)
    json.loads((tmp_path / "run" / "checkpoint-4" / "progress.json").read_text())

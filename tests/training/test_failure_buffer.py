"""The failure buffer: who enters, its steps against a loop of our own, resuming in the middle, and leaving RL alone."""

import json

import by_hand
import pytest
import small
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors import safe_open
from transformers import TrainerCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks import digits
from fe_posttrain.training.announcements import what_changes_the_optimum
from fe_posttrain.training.demonstration_terms import TokenEnergies

GROUP = small.ROLLOUTS["num_generations"]
BUFFER = {"demonstration_energy_weight": 1.0, "beta": 0.0, "shuffle_dataset": False}
PROMPTS = sorted(set(digits.dataset(["basin", "tail_10"], 60, seed=0)["prompt"]))[:20]


def rows(**demonstrations: str | None) -> Dataset:
    """Different prompts, each with its answer as demonstration unless another one is given."""
    own = {x: digits.demonstration(x) for x in PROMPTS} | demonstrations
    return Dataset.from_dict({"prompt": PROMPTS, "demonstration": [own[x] for x in PROMPTS]})


def nothing(prompts, **_) -> list[float]:
    return [0.0] * len(prompts)


def train(folder, *, settings=None, **arguments):
    settings = {**BUFFER, **(settings or {})}
    return by_hand.train(folder, settings=settings, **{"reward_funcs": [nothing], "train_dataset": rows(), **arguments})


# What the four rollouts of each of eight prompts are worth; None: the reward failed on that row.
WORTH = [
    [0.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0],  # solved once
    [0.2, 0.4, 0.4, 0.5],  # solved from .5 on
    [-1.0, 0.0, 0.9, 0.1],
    [0.0, 0.0, 0.0, None],  # one is not known to fail
    [0.0, 0.0, 0.0, 0.0],  # no demonstration
    [0.0, 0.0, 0.0, 0.0],  # one is not well-formatted
    [1.0, 1.0, 1.0, 1.0],
]
FORM = """
def form(prompts, completions, completion_ids, note, **columns):
    assert len(prompts) == len(completions) == len(completion_ids) == 32
    return [0.0 if place == 26 or word == "unread" else 0.5 for place, word in enumerate(note)]
"""


@pytest.mark.parametrize("estimator", ["sequence", "trl"])
@pytest.mark.parametrize(
    ("settings", "wanted"),
    [({}, [0, 2, 3, 6]), ({"success_threshold": 0.5}, [0, 6]), ({"failure_buffer_format": "form"}, [0, 2, 3])],
    ids=["reward below 1", "reward below .5", "well-formatted"],
)
def test_prompts_enter_that_failed_as_a_group_and_have_a_demonstration(tmp_path, settings, wanted, estimator):
    (tmp_path / "mine.py").write_text(FORM)
    settings = {**settings, "failure_buffer": 100, "per_device_train_batch_size": 32, "estimator": estimator}
    if "failure_buffer_format" in settings:
        settings["failure_buffer_format"] = f"{tmp_path}/mine.py:form"
    seen = []

    def worth(prompts, **columns):
        seen.append(set(columns))
        return [WORTH[PROMPTS.index(x)][place % GROUP] for place, x in enumerate(prompts)]

    _, trainer = train(
        tmp_path,
        settings={**settings, "reward_fault_policy": "mask"},
        reward_funcs=[worth],
        train_dataset=rows(**{PROMPTS[5]: None}).add_column("note", ["any"] * len(PROMPTS)),
        rollout_func=by_hand.fixed_rollouts,
    )
    assert trainer._failure_buffer.rows == wanted
    assert seen and all("demonstration_row" not in columns for columns in seen)


def mean_surprise(model, chosen: list[int]) -> torch.Tensor:
    """-log pi of the demonstrations of these prompts, summed over tokens, averaged over rows."""
    tokenizer = small.TOKENIZER
    prompt_ids = tokenizer([PROMPTS[i] for i in chosen])["input_ids"]
    ids = [[*tokenizer(digits.demonstration(PROMPTS[i]))["input_ids"], tokenizer.eos_token_id] for i in chosen]
    return -sum(row.sum() for row in by_hand.log_probs_with_grad(model, prompt_ids, ids)) / len(chosen)


@pytest.mark.parametrize("estimator", ["sequence", "trl"])
def test_its_steps_are_those_of_a_loop_with_adamw(tmp_path, estimator):
    """RL stands still at learning rate 0. Four prompts enter a step and six are read at once, in steps of 4 and 2."""
    settings = {
        "failure_buffer": 6,
        "failure_buffer_batch_size": 4,
        "failure_buffer_learning_rate": 0.01,
        "failure_buffer_max_grad_norm": 0.8,
        "per_device_demonstration_batch_size": 3,
        "demonstration_energy_weight": 0.7,
        "loss_divisor": 10.0,
        "learning_rate": 0.0,
        "weight_decay": 0.1,
        "adam_beta1": 0.8,
        "adam_beta2": 0.9,
        "adam_epsilon": 1e-4,
        "max_steps": 3,
        "estimator": estimator,
    }
    record, trainer = train(tmp_path, settings=settings)
    model = small.model()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.9), eps=1e-4)
    surprises, clipped = [], []
    for chosen in ([0, 1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11]):
        surprise = mean_surprise(model, chosen)
        optimizer.zero_grad()
        (0.7 * surprise / 10).backward()
        clipped.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.8).item() > 0.8)
        optimizer.step()
        surprises.append(surprise.item())
    assert len(set(clipped)) == 2
    for found, wanted in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert (found - wanted).abs().max() <= 1e-6
    assert record.column("failure_buffer/size") == [4, 2, 0]
    assert record.column("failure_buffer/steps") == [0, 2, 4]
    read = [row.get("failure_buffer/loss") for row in record.logs]
    first, second = (0.7 * (4 * surprises[i] + 2 * surprises[i + 1]) / 6 for i in (0, 2))
    assert read[0] is None and read[1:] == pytest.approx([first, second], rel=1e-5)
    assert "free_energy/demonstration" not in record.logs[0]
    account = trainer._account
    shown = sum(len(small.TOKENIZER(digits.demonstration(x))["input_ids"]) + 1 for x in PROMPTS[:12])
    rollouts = account.generated_tokens if estimator == "trl" else 0  # TRL's step trains rows without advantage too
    assert account.demonstrations == 12 and account.gradient_tokens == shown + rollouts


def test_it_waits_while_demonstrations_have_no_weight_and_projects_them_as_asked(tmp_path):
    """w_d is 0 in the first two steps; then eight wait for a buffer of four, and DFT's gradient is that of -pi."""
    settings = {
        "failure_buffer": 4,
        "failure_buffer_learning_rate": 0.01,
        "failure_buffer_max_grad_norm": 0.0,
        "adam_epsilon": 1e-4,
        "loss_divisor": 10.0,
        "learning_rate": 0.0,
        "demonstration_energy_weight": 0.0,
        "demonstration_energy_schedule": {"switch": {"final": 2.0, "until": 2}},
        "demonstration_projection": "reverse",
        "max_steps": 3,
    }
    record, trainer = train(tmp_path, settings=settings)
    model, tokenizer = small.model(), small.TOKENIZER
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-4, weight_decay=0.0)
    for start in (0, 4, 8):
        texts = PROMPTS[start : start + 4]
        ids = [[*tokenizer(digits.demonstration(x))["input_ids"], tokenizer.eos_token_id] for x in texts]
        chosen = by_hand.log_probs_with_grad(model, tokenizer(texts)["input_ids"], ids)
        optimizer.zero_grad()
        (-2.0 / 10 * sum(row.exp().sum() for row in chosen) / 4).backward()
        optimizer.step()
    assert record.column("failure_buffer/size") == [4, 8, 0] and record.column("failure_buffer/steps") == [0, 0, 3]
    for found, wanted in zip(trainer.model.parameters(), model.parameters(), strict=True):
        assert (found - wanted).abs().max() <= 1e-6


def test_the_run_goes_on_as_without_it_until_it_is_full(tmp_path):
    """RL with demonstrations beside it that nobody reads yet is RL, bit for bit."""
    settings = {"max_steps": 4, "beta": 0.1, "max_grad_norm": 1.0, "shuffle_dataset": True}
    arguments = {"reward_funcs": [small.length_reward]}
    plain, alone = train(tmp_path, settings={**settings, "demonstration_energy_weight": 0.0}, **arguments)
    waits = {**settings, "failure_buffer": 1000, "success_threshold": 100.0}
    record, trainer = train(tmp_path, settings=waits, **arguments)
    assert small.same_weights(alone.model, trainer.model) and not small.same_weights(alone.model, small.model())
    assert record.column("failure_buffer/size") == [4, 8, 12, 16]
    ours = [{k: v for k, v in row.items() if not k.startswith("failure_buffer")} for row in record.logs]
    assert [r | {"step_time": 0} for r in ours] == [r | {"step_time": 0} for r in plain.logs]


def test_capacity_0_reads_demonstrations_at_every_step_whatever_its_other_keys_say(tmp_path):
    plain, alone = train(tmp_path)
    keys = {"failure_buffer": 0, "failure_buffer_batch_size": 2, "failure_buffer_learning_rate": 1.0}
    record, trainer = train(tmp_path, settings=keys)
    assert small.same_weights(alone.model, trainer.model) and not small.same_weights(alone.model, small.model())
    assert record.column("free_energy/demonstration") == plain.column("free_energy/demonstration")
    assert trainer._failure_buffer is None and "failure_buffer/size" not in record.logs[0]


def test_it_waits_for_the_end_of_a_generation_block_and_comes_before_other_callbacks(tmp_path):
    class Looks(TrainerCallback):
        def __init__(self):
            self.steps: list[int] = []

        def bind(self, trainer):
            self.trainer = trainer

        def on_step_end(self, args, state, control, **kwargs):
            self.steps.append(self.trainer._failure_buffer.steps)

    looks = Looks()
    settings = {"failure_buffer": 4, "num_iterations": 2, "max_steps": 4}
    record, _ = train(tmp_path, settings=settings, callbacks=[looks])
    assert record.column("failure_buffer/size") == [4, 0, 4, 0]
    assert record.column("failure_buffer/steps") == looks.steps == [0, 1, 1, 2]


class StopAt(TrainerCallback):
    """Ends training after a step, without saving anything."""

    def __init__(self, step: int | None):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


def test_a_run_that_resumes_with_a_half_full_buffer_is_the_uninterrupted_one(tmp_path):
    """Four of 20 prompts fail in each step: 4, 8 - 6, 6 - 6 and 4 wait, and six were read twice, in two steps each."""

    def run(folder, stop=None, resume=None):
        record = small.Record()
        settings = {
            **small.SETTINGS,
            **small.ROLLOUTS,
            **BUFFER,
            "shuffle_dataset": True,
            "failure_buffer": 6,
            "failure_buffer_batch_size": 4,
            "success_threshold": 100.0,
            "beta": 0.1,
            "max_steps": 10,
            "save_strategy": "steps",
            "save_steps": 4,
            "logging_steps": 3,
        }
        trainer = FreeEnergyTrainer(
            small.model(),
            reward_funcs=[small.length_reward],
            args=FreeEnergyConfig(str(folder), **settings),
            train_dataset=rows(),
            processing_class=small.TOKENIZER,
            callbacks=[record, StopAt(stop)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return record, trainer

    whole, trainer = run(tmp_path / "whole")
    run(tmp_path / "broken", stop=6)
    checkpoint = tmp_path / "broken" / "checkpoint-4"
    kept = json.loads((checkpoint / "progress.json").read_text())["callbacks"]["FailureBuffer"]
    assert kept["steps"] == 4 and len(kept["rows"]) == 4
    with safe_open(checkpoint / "failure_buffer.safetensors", "pt") as file:
        assert len(list(file.keys())) == 3 * len(list(trainer.model.parameters()))  # two moments and a count each
    resumed, other = run(tmp_path / "broken", resume=True)
    assert small.same_weights(trainer.model, other.model)
    assert other._failure_buffer.rows == trainer._failure_buffer.rows
    assert other._failure_buffer.steps == trainer._failure_buffer.steps > kept["steps"]
    assert 0 < len(resumed.logs) < len(whole.logs)
    last = whole.logs[-len(resumed.logs) :]
    assert [r | {"step_time": 0} for r in resumed.logs] == [r | {"step_time": 0} for r in last]


def test_it_trains_an_adapter_and_nothing_else(tmp_path):
    small.model().save_pretrained(tmp_path / "base")
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    settings = {"failure_buffer": 4, "learning_rate": 0.0, "failure_buffer_learning_rate": 0.01}
    _, trainer = train(tmp_path / "run", settings=settings, model=str(tmp_path / "base"), peft_config=peft)
    base = dict(small.model().named_parameters())
    weights = dict(trainer.model.named_parameters())
    frozen = {n: w for n, w in weights.items() if "lora" not in n}
    assert len(frozen) == len(base)
    for name, weight in frozen.items():
        plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
        assert torch.equal(weight, base[plain]), name
    assert all(w.abs().max() > 0 for n, w in weights.items() if "lora_B" in n)  # they begin at 0


def test_no_gap_is_shown_and_the_gate_is_announced(tmp_path):
    data = rows().add_column("reference_p", [0.5] * len(PROMPTS))
    settings = {"failure_buffer": 100, "beta": 0.1, "demonstration_energy_weight": 1.0}
    record, trainer = train(tmp_path, settings=settings, train_dataset=data)
    assert "free_energy/gap" not in record.logs[0] and "free_energy/reward" in record.logs[0]
    (line,) = what_changes_the_optimum(trainer.args)
    assert line.startswith("failure_buffer: 100: demonstrations are read only of prompts whose rollouts all failed")


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (
            {"demonstration_energy_weight": 0.0},
            {},
            "failure_buffer: 4 with reward_energy_weight 1.0 and d",
        ),
        ({"reward_energy_weight": 0.0}, {}, "failure_buffer: 4 with reward_energy_weight 0.0"),
        ({"reward_energy_weight": 0.0, "beta": 0.1}, {}, "failure_buffer: 4 with reward_energy_weight 0.0"),
        ({"fp16": True}, {}, "failure_buffer: with fp16"),
        ({"gate": "unsolved"}, {}, "failure_buffer: with a gate"),
        ({"reward_projection": "forward", "forward_sampler": "bank"}, {}, "failure_buffer: with forward_sampler bank"),
        ({"failure_buffer": -1}, {}, "failure_buffer: -1; it is a count"),
        ({"failure_buffer_batch_size": 0}, {}, "failure_buffer_batch_size: 0; "),
        ({}, {"demo_dataset": small.demonstrations(4), "train_dataset": small.prompts()}, "positive with a demo_data"),
        ({"failure_buffer_format": "none.such:form"}, {}, "failure_buffer_format: 'none.such:form'; No module named"),
        ({"remove_unused_columns": True}, {}, "remove_unused_columns: true with failure_buffer"),
        ({"packing": True}, {}, "packing: on; demonstrations paired"),
    ],
)
def test_what_it_cannot_work_with_is_refused(tmp_path, settings, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, settings={"failure_buffer": 4, **settings}, **arguments)


def test_sharded_weights_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(FreeEnergyTrainer, "_sharded", lambda self: True)
    with pytest.raises(ValueError, match="failure_buffer: with FSDP or DeepSpeed"):
        train(tmp_path, settings={"failure_buffer": 4})


def test_a_demonstration_that_is_not_finite_stops_the_run_before_the_optimizer_moves(tmp_path, monkeypatch):
    def broken(self, model, inputs):
        energy = torch.full((len(inputs["input_ids"]), 3), torch.nan, requires_grad=True)
        return TokenEnergies(energy, energy.detach())

    monkeypatch.setattr(FreeEnergyTrainer, "_token_energies", broken)
    model = small.model()
    with pytest.raises(FloatingPointError, match=r"demonstration \(failure buffer\): not finite in 4 of 4 rows"):
        train(tmp_path, settings={"failure_buffer": 4, "learning_rate": 0.0}, model=model)
    assert small.same_weights(model, small.model())

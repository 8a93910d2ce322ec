"""Where training's reference is reset, or is another model, support stays relative to the policy that the run starts
from."""

import shutil

import numpy as np
import pytest
import short_runs
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PrinterCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.support.ledger import Ledger
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import reference_model

RESETS = {"reference_resets": [3, 5]}


class UnderTheStart(short_runs.Rows):
    """Keeps every generation, with its log-probs under the weights that the run had when it was built."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple] = []

    def bind(self, trainer):
        self.trainer = trainer
        self.start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    def on_rollouts(self, args, state, control, rollouts):
        mine = {name: p.data for name, p in self.trainer.model.named_parameters()}
        for name, p in self.trainer.model.named_parameters():
            p.data = self.start[name]
        self.seen.append((rollouts, rollouts.score(range(len(rollouts.prompt)))))
        for name, p in self.trainer.model.named_parameters():
            p.data = mine[name]


def other_model(folder) -> str:
    """The testbed's reference with a little noise on its weights."""
    model = AutoModelForCausalLM.from_pretrained(reference_model())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for p in model.parameters():
            p.data += 0.02 * torch.randn_like(p)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("rl", RESETS), ("trl", RESETS), ("lora", RESETS), ("rl", {"teacher": True}), ("lora", {"teacher": True})],
)
def test_the_ledger_weighs_rollouts_by_the_start(tmp_path, kind, settings):
    if "teacher" in settings:
        settings = {"reference_model_name_or_path": other_model(tmp_path / "teacher")}
    plain = short_runs.support(tmp_path / "cache")
    short_runs.trainer(tmp_path / "plain", kind, plain, max_steps=1).train()
    support, recorder = short_runs.support(tmp_path / "cache", support_steps=4), UnderTheStart()
    made = short_runs.trainer(tmp_path / "run", kind, support, recorder, learning_rate=3e-3, **settings)
    made.train()
    assert support.off is None and support.probes.key.reference == plain.probes.key.reference
    assert len(list((tmp_path / "cache").glob("*.npz"))) == 1  # the bank of a run that keeps its reference
    apart = [abs(r.log_reference - base).max() for r, base in recorder.seen]
    assert apart[-1] > 1e-2  # training's reference is another one by now
    again = Ledger(len(support.riding.keys), 16)
    for rollouts, base in recorder.seen:
        prompt = np.searchsorted(support.riding.keys, rollouts.prompt)
        again.update(prompt, rollouts.rewards[:, 0], base - rollouts.log_sampler)
    assert (again.drawn == support.riding.ledger.drawn).all() and again.drawn.sum() == 8 * 16
    assert np.allclose(again.log_wealth, support.riding.ledger.log_wealth, atol=1e-4)
    assert not any(key.startswith("support/gap") for row in recorder.rows for key in row)
    assert "objective" not in support.summary()


def test_training_with_resets_is_bit_for_bit_untracked_training(tmp_path):
    alone = short_runs.trainer(tmp_path / "alone", "rl", **RESETS)
    alone.train()
    tracked = short_runs.trainer(tmp_path / "tracked", "rl", short_runs.support(tmp_path / "cache"), **RESETS)
    tracked.train()
    mine = short_runs.weights(tracked)
    assert all(torch.equal(value, mine[name]) for name, value in short_runs.weights(alone).items())


def test_a_run_resumed_behind_a_reset_says_what_the_uninterrupted_one_says(tmp_path):
    found = []
    for folder in ("whole", "resumed"):
        support = short_runs.support(tmp_path / "cache", support_steps=4, support_displacement_steps=3)
        settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, **RESETS}
        made = short_runs.trainer(tmp_path / folder, "rl", support, **settings)
        checkpoint = tmp_path / folder / "checkpoint-4"
        if folder == "resumed":
            shutil.copytree(tmp_path / "whole" / "checkpoint-4", checkpoint)
        made.train(resume_from_checkpoint=str(checkpoint) if folder == "resumed" else None)
        found.append((support.summary(), support.riding.ledger.log_wealth))
    assert found[0][0] == found[1][0] and (found[0][1] == found[1][1]).all()


@pytest.mark.parametrize("beta", [0.0, 0.05])
def test_an_adapter_that_is_passed_is_part_of_the_start(tmp_path, beta):
    """With and without a KL: the base is the model with the adapter as it was passed."""
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(reference_model()), config)
    args = {"per_device_train_batch_size": 16, "num_generations": 4, "max_completion_length": 12, "max_steps": 3}
    args |= {"learning_rate": 1e-2, "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
    args |= {"beta": beta, "reference_resets": [1]}
    support = short_runs.support(tmp_path / "cache")
    trainer = FreeEnergyTrainer(
        model, digits.correct, FreeEnergyConfig(str(tmp_path), **args), digits.dataset(["basin"], 32, seed=0)
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(support)
    prompts = short_runs.probe_rows(4, ("basin",))
    ids = trainer.processing_class([row["prompt"] for row in prompts], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = trainer.model.eval()(ids).logits
    trainer.train()
    with torch.no_grad(), support._reference() as base:
        torch.testing.assert_close(base.eval()(ids).logits, before)
    assert support.off is None

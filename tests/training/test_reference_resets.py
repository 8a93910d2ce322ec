"""A reset makes the policy the reference and the optimizer new; whoever resumes behind it has both."""

import pytest
import small
import torch
from by_hand import fixed_rollouts
from peft import LoraConfig, get_peft_model
from test_resuming import MIXTURE, RL, StopAt, assert_same
from test_resuming import train as resumable
from transformers import TrainerCallback

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.sequences.scoring import score
from fe_posttrain.training.reference_keys import reset_steps
from fe_posttrain.training.rollouts import KNOWN_P

SETTINGS = {**small.ROLLOUTS, "beta": 0.2, "max_steps": 4, "lr_scheduler_type": "constant", "shuffle_dataset": False}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}


class Weights(TrainerCallback):
    """The policy's trained weights before each update, and what the reference makes of two fixed rows."""

    def __init__(self):
        self.policy: list[dict[str, torch.Tensor]] = []
        self.reference: list[torch.Tensor] = []
        self.trainer = None

    def bind(self, trainer):
        self.trainer = trainer

    def on_step_begin(self, args, state, control, **kwargs):
        torch.manual_seed(0)  # TRL shuffles the rows of a step: the same way in every step

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.policy.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        if self.trainer.args.uses_reference:
            self.reference.append(self.trainer._score_reference(fixed_rows()))


def fixed_rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, len(small.TOKENIZER), (2, 10), generator=generator)
    ones = torch.ones(2, 5, dtype=torch.long)
    return {"prompt_ids": ids[:, :5], "completion_ids": ids[:, 5:], "prompt_mask": ones, "completion_mask": ones}


def log_probs(model) -> torch.Tensor:
    ids = fixed_rows()
    model.eval()
    scored, _ = score(model, ids["prompt_ids"].tolist(), ids["completion_ids"].tolist(), pad_token_id=0)
    return scored


def train(folder, *callbacks, model=None, **settings):
    return small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={**SETTINGS, **settings},
        model=small.model() if model is None else model,
        reward_funcs=[small.length_reward],
        train_dataset=small.prompts(4),  # all of them in every step
        rollout_func=fixed_rollouts,
        callbacks=list(callbacks),
    )


def test_a_reset_is_a_run_that_starts_from_those_weights(tmp_path):
    seen = Weights()
    record, trainer = train(tmp_path / "whole", seen, reference_resets=[3])
    start = small.model()
    start.load_state_dict(seen.policy[3], strict=False)  # without the tied head
    assert not small.same_weights(start, small.model())
    assert small.same_weights(trainer.ref_model, start)
    fresh, other = train(tmp_path / "fresh", Weights(), model=start, max_steps=1)
    assert small.same_weights(trainer.model, other.model)
    assert record.logs[3]["free_energy/kl"] == fresh.logs[0]["free_energy/kl"] == pytest.approx(0, abs=1e-5)
    assert record.logs[2]["free_energy/kl"] > 0.01
    assert all(torch.equal(g, fresh.gradients[0][name]) for name, g in record.gradients[3].items())
    kept, _ = train(tmp_path / "kept", Weights())
    assert kept.column("loss")[:3] == record.column("loss")[:3]
    assert kept.logs[3]["free_energy/kl"] > 0.01


def test_without_a_kl_the_optimizer_alone_is_reset(tmp_path):
    seen = Weights()
    _, trainer = train(tmp_path / "whole", seen, reference_resets=[0.5], beta=0.0)
    start = small.model()
    start.load_state_dict(seen.policy[2], strict=False)
    _, other = train(tmp_path / "fresh", Weights(), model=start, beta=0.0, max_steps=2)
    assert trainer.ref_model is None and small.same_weights(trainer.model, other.model)


def test_a_reset_inside_a_generation_block_waits_for_its_end(tmp_path):
    seen = Weights()
    train(tmp_path, seen, reference_resets=[1], num_iterations=2, gradient_accumulation_steps=1)
    assert torch.equal(seen.reference[0], seen.reference[1])  # steps 0 and 1 are one block
    assert not torch.equal(seen.reference[1], seen.reference[2])
    assert torch.equal(seen.reference[2], seen.reference[3])


@pytest.mark.parametrize("passed", [False, True], ids=["new adapter", "trained adapter"])
def test_with_lora_the_adapter_as_it_stands_is_the_reference(tmp_path, passed):
    torch.manual_seed(0)
    model = small.model()
    if passed:
        model = get_peft_model(model, LoraConfig(**LORA, init_lora_weights=False))
    seen, record = Weights(), small.Record()
    trainer = FreeEnergyTrainer(
        model,
        reward_funcs=[small.length_reward],
        args=FreeEnergyConfig(
            str(tmp_path), **{**small.SETTINGS, **SETTINGS, "reference_resets": [2], "learning_rate": 1e-2}
        ),
        train_dataset=small.prompts(4),
        processing_class=small.TOKENIZER,
        callbacks=[seen, record],
        peft_config=None if passed else LoraConfig(**LORA),
    )
    assert [name for name, p in trainer.model.named_parameters() if p.requires_grad and ".ref" in name] == []
    torch.testing.assert_close(seen_at := log_probs(trainer.model), trainer._score_reference(fixed_rows()))
    trainer.train()
    assert torch.equal(seen.reference[0], seen.reference[1]) and torch.equal(seen.reference[2], seen.reference[3])
    torch.testing.assert_close(seen.reference[0], seen_at)
    trainer.model.load_state_dict(seen.policy[2], strict=False)
    torch.testing.assert_close(seen.reference[2], log_probs(trainer.model))
    assert (seen.reference[2] - seen.reference[0]).abs().max() > 1e-3
    kl = record.column("free_energy/kl")
    assert kl[2] == pytest.approx(0, abs=1e-5) and abs(kl[1]) > 1e-4 and abs(kl[3]) > 1e-4


BANK = {"reward_projection": "forward", "forward_sampler": "bank"}
RESET = {**RL, "reference_resets": [5, 0.6]}  # of 16 steps: 5 and 10; a checkpoint every 4


@pytest.mark.parametrize(
    ("settings", "stop"),
    [
        (RESET, 6),
        (RESET, 14),
        ({**RESET, "reference_resets": [8]}, 9),  # at the step of a checkpoint: it comes before the reset
        ({**MIXTURE, "reference_resets": [7]}, 11),
        ({**RL, "reference_resets": [5], "num_iterations": 2, "gradient_accumulation_steps": 2}, 13),
    ],
)
def test_a_run_resumed_behind_a_reset_is_the_uninterrupted_one(tmp_path, settings, stop):
    whole = resumable(tmp_path / "whole", settings)
    resumable(tmp_path / "broken", settings, stop=stop)
    resumed = resumable(tmp_path / "broken", settings, resume=True)
    assert_same(whole, resumed)
    assert small.same_weights(whole[1].ref_model, resumed[1].ref_model)


def test_a_resumed_adapter_has_its_reference_again(tmp_path):
    torch.manual_seed(0)
    small.model().save_pretrained(tmp_path / "base")

    def run(folder, **words):
        args = {**small.SETTINGS, **RESET, "max_steps": 12, "save_strategy": "steps", "save_steps": 4}
        seen, record = Weights(), small.Record()
        torch.manual_seed(1)
        trainer = FreeEnergyTrainer(
            str(tmp_path / "base"),
            reward_funcs=[small.length_reward],
            args=FreeEnergyConfig(str(folder), **args),
            train_dataset=small.prompts(20),
            processing_class=small.TOKENIZER,
            callbacks=[record, seen, StopAt(words.get("stop"))],
            peft_config=LoraConfig(**LORA),
        )
        trainer.train(resume_from_checkpoint=words.get("resume"))
        return record, trainer, seen

    whole = run(tmp_path / "whole")
    run(tmp_path / "broken", stop=9)
    resumed = run(tmp_path / "broken", resume=True)
    assert_same(whole[:2], resumed[:2])
    assert len(resumed[2].reference) == 4
    assert all(torch.equal(a, b) for a, b in zip(whole[2].reference[8:], resumed[2].reference, strict=True))


def test_a_checkpoint_behind_a_reset_needs_the_key_and_the_same_start(tmp_path):
    resumable(tmp_path / "run", RESET, stop=9)
    with pytest.raises(ValueError, match=r"reference_resets: none, and .* of step 5; write reference_resets: \[5\]"):
        resumable(tmp_path / "run", RL, resume=True)
    with pytest.raises(ValueError, match="model_name_or_path: its weights are not those"):
        resumable(tmp_path / "run", RESET, resume=True, model=small.model(seed=1))


def test_the_gap_to_the_base_is_not_shown(tmp_path):
    rows = small.prompts(4).add_column(KNOWN_P, [0.5] * 4)
    shown = []
    for resets in ([], [1]):
        record, _ = small.run(
            FreeEnergyTrainer,
            FreeEnergyConfig,
            tmp_path,
            settings={**SETTINGS, "max_steps": 2, "reference_resets": resets},
            model=small.model(),
            reward_funcs=[small.length_reward],
            train_dataset=rows,
        )
        shown.append(["free_energy/gap" in row for row in record.logs])
    assert shown == [[True, True], [False, False]]


def test_steps_and_shares():
    assert reset_steps([300, 0.5, 200, 0.333], 400) == [134, 200, 300]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"reference_resets": [0]}, "reference_resets: 0; each counts optimizer steps"),
        ({"reference_resets": [2.5]}, "reference_resets: 2.5; each counts"),
        ({"reference_resets": [2, 9], "max_steps": 9}, r"reference_resets: 2, 9 with max_steps 9; .* none from 9 on"),
        ({"reference_resets": [2], "sync_ref_model": True}, "reference_resets: written beside sync_ref_model"),
        ({"reference_resets": [2], "optim": "schedule_free_adamw"}, "with optim schedule_free_adamw; .* fresh"),
        ({"reference_resets": [2], "reference_model_name_or_path": "x"}, "beside reference_model_name_or_path"),
        ({"reference_model_name_or_path": "x", "beta": 0.0}, "reference_model_name_or_path: x with beta 0"),
        ({"reference_model_name_or_path": "x", "sync_ref_model": True}, "beside sync_ref_model"),
        ({"reference_resets": [2], **BANK}, "reference_resets: written beside forward_sampler: bank"),
        ({"reference_model_name_or_path": "x", **BANK}, "or_path: written beside forward_sampler: bank"),
        ({"reference_model_name_or_path": "x", "cast_lm_head_to_fp32": True}, "beside cast_lm_head_to_fp32"),
    ],
)
def test_what_contradicts_is_told(words, message):
    with pytest.raises(ValueError, match=message):
        FreeEnergyConfig("unused", **{"beta": 0.1, "use_cpu": True, **words})


def test_a_reset_behind_the_end_stops_before_training(tmp_path):
    with pytest.raises(ValueError, match="reference_resets: 2; the run has 1 steps"):
        train(tmp_path, reference_resets=[2], max_steps=-1, num_train_epochs=1)


def test_weights_trained_outside_of_the_adapter_are_refused(tmp_path):
    model = get_peft_model(small.model(), LoraConfig(**LORA))
    model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"reference_resets: .*norm.weight is trained and no adapter"):
        train(tmp_path, model=model, reference_resets=[2])

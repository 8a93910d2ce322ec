"""Prompts forwarded once, rows of similar length together, rows without gradient left out: the same numbers as a
forward of every row alone."""

import logging

import pytest
import small
import torch
from by_hand import assert_close, fixed_rollouts, gradients_of, log_probs_with_grad, train
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)
from trl import GRPOConfig, GRPOTrainer

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.sequences.prompts import SharedPrompts
from fe_posttrain.tasks import digits
from fe_posttrain.training import scoring

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
}
IDS = {"vocab_size": len(small.TOKENIZER), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYOUTS = {
    "llama": LlamaConfig(**IDS, **SIZES),
    "qwen2": Qwen2Config(**IDS, **SIZES),
    "qwen3": Qwen3Config(**IDS, **SIZES, head_dim=8),
    "gpt2": GPT2Config(**IDS, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2),
}


def build(name: str, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(LAYOUTS[name], dtype=dtype)


def ragged():
    """Prompts of six and of seven tokens."""
    return digits.dataset(["basin", "barrier"], 40, seed=0)


def first_gradient(folder, model, rows=None, **settings):
    """Gradient of the first step, and the trainer."""
    rows = ragged() if rows is None else rows
    record, trainer = train(folder, model=model, settings=settings, rollout_func=fixed_rollouts, train_dataset=rows)
    return record.gradients[0], trainer


def apart(found, wanted) -> float:
    """Largest difference, relative to the largest gradient."""
    assert found.keys() == wanted.keys()
    scale = max(g.abs().max() for g in wanted.values())
    return max(((found[name] - wanted[name]).abs().max() / scale).item() for name in wanted)


@pytest.fixture
def many_forwards(monkeypatch):
    """A forward is taken to cost next to nothing, so that a small batch is dealt into several."""
    monkeypatch.setattr(scoring, "call_in_tokens", lambda device: 1)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("estimator", ["sequence", "sequence_to_go"])
def test_the_gradient_is_that_of_rows_forwarded_alone(tmp_path, many_forwards, name, estimator):
    found, trainer = first_gradient(tmp_path, build(name), estimator=estimator)
    policy, (prompt_ids, completion_ids) = build(name).eval(), trainer.drawn
    rewards = torch.tensor(small.length_reward(completion_ids)).view(-1, 4)
    advantages = (rewards - (rewards.sum(1, keepdim=True) - rewards) / 3).flatten()  # at the reference: no KL
    rows = log_probs_with_grad(policy, prompt_ids, completion_ids)
    loss = -sum(a * row.sum() for a, row in zip(advantages, rows, strict=True)) / (len(rows) * 8)
    assert apart(found, gradients_of(loss, policy)) <= 1e-5


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    "name", [name for name in LAYOUTS if name != "gpt2"]
)  # TRL shifts the positions of padded rows
def test_the_gradient_is_that_of_padded_rows(tmp_path, many_forwards, name, dtype, most):
    shared, one = first_gradient(tmp_path, build(name, dtype), share_prompts=True)
    padded, other = first_gradient(tmp_path, build(name, dtype), share_prompts=False)
    assert one._keeps_groups and not other._keeps_groups
    assert 0 < apart(shared, padded) <= most  # not the same arithmetic


def test_every_prompt_is_forwarded_once_with_groups_whole_after_the_shuffle(tmp_path):
    model, widths = small.model(), []
    model.model.register_forward_pre_hook(
        lambda m, a, kw: widths.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    settings = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 8, "beta": 0.0}
    train(tmp_path, model=model, settings=settings, rollout_func=fixed_rollouts, train_dataset=small.prompts())
    prompts, completions = widths[-8::2], widths[-7::2]
    assert all(rows == 2 for rows, _ in prompts) and all(rows == 8 for rows, _ in completions)


def test_micro_batches_of_a_step_are_sorted_by_length_and_its_gradient_stays(tmp_path):
    plain, _ = first_gradient(tmp_path, small.model(), per_device_train_batch_size=16, gradient_accumulation_steps=2)
    seen = []

    class Watched(FreeEnergyTrainer):
        def _compute_loss(self, model, inputs):
            seen.append(int((inputs["prompt_mask"].sum(-1) + inputs["completion_mask"].sum(-1)).max()))
            return super()._compute_loss(model, inputs)

    settings = {"beta": 0.2, "max_steps": 1, "max_grad_norm": 0.0, **small.ROLLOUTS, "per_device_train_batch_size": 4}
    record, _ = small.run(
        Watched,
        FreeEnergyConfig,
        tmp_path,
        settings={**settings, "gradient_accumulation_steps": 8},
        model=small.model(),
        reward_funcs=[small.length_reward],
        train_dataset=ragged(),
        rollout_func=fixed_rollouts,
    )
    assert len(seen) == 8 and seen == sorted(seen) and seen[0] < seen[-1]
    assert_close(record.gradients[0], plain)


@pytest.mark.parametrize("known", [True, False], ids=["sampled here", "log-probs alone"])
def test_rows_without_gradient_are_left_out_exactly(tmp_path, many_forwards, monkeypatch, known):
    """At beta 0, two of four groups are paid alike: the same gradient and logged metrics, fewer rows forwarded."""

    def half(completion_ids, prompts, **_):
        return [
            r if p == prompts[0] else 1.0 for r, p in zip(small.length_reward(completion_ids), prompts, strict=True)
        ]

    def run(skips: bool):
        model, rows = small.model(), []
        model.model.register_forward_pre_hook(
            lambda m, a, kw: rows.append(len(kw["input_ids"])) if torch.is_grad_enabled() else None, with_kwargs=True
        )
        with monkeypatch.context() as patch:
            if not skips:
                patch.setattr(FreeEnergyTrainer, "_rows_with_gradient", lambda self, inputs: None)
            record, _ = train(
                tmp_path,
                model=model,
                reward_funcs=[half],
                settings={"beta": 0.0},
                rollout_func=None if known else fixed_rollouts,
            )
        return record, sum(rows)

    (skipping, few), (whole, many) = run(True), run(False)
    assert few == 1 + 4 < many == 4 + 16  # prompts and rows that were forwarded with a graph
    assert_close(skipping.gradients[0], whole.gradients[0], 1e-6)
    for key in ("entropy", "loss", "completions/mean_length", "reward"):
        assert skipping.column(key) == pytest.approx(whole.column(key), rel=1e-5, abs=1e-7), key


def test_a_step_without_any_signal_has_a_zero_gradient(tmp_path):
    record, _ = train(
        tmp_path, reward_funcs=[lambda completions, **_: [1.0] * len(completions)], settings={"beta": 0.0}
    )
    assert record.gradients[0] and all(not g.any() for g in record.gradients[0].values())


def test_kept_groups_without_signal_weigh_the_inverse_of_their_share(tmp_path):
    """Each group is one prompt: advantages are those of q = 1, times 0 or 1/q with mean 1."""

    def advantages(rate: float) -> torch.Tensor:
        seen = []

        class Watched(FreeEnergyTrainer):
            def _shape(self, batch, rewards, mode):
                super()._shape(batch, rewards, mode)
                seen.append(batch["advantages"].view(-1, 4))

        settings = {"beta": 0.2, "max_steps": 41, "learning_rate": 0.0, "max_grad_norm": 0.0, **small.ROLLOUTS}
        settings |= {"quiet_group_rate": rate, "per_device_train_batch_size": 32}
        small.run(
            Watched,
            FreeEnergyConfig,
            tmp_path,
            settings=settings,
            model=small.model(),
            reward_funcs=[reward],
            train_dataset=small.prompts(),
            callbacks=[Moved()],
            rollout_func=fixed_rollouts,
        )
        return torch.cat(seen[1:])

    def reward(completion_ids, **_):  # every second group has signal
        return [float(i % 4 == 0) if i // 4 % 2 else 1.0 for i in range(len(completion_ids))]

    class Moved(small.Record):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 1:
                with torch.no_grad():
                    for p in model.parameters():
                        p.add_(0.01)  # off the reference, so that the KL has a gradient

    every, some = advantages(1.0), advantages(0.25)
    signal, quiet = slice(1, None, 2), slice(0, None, 2)
    assert torch.equal(every[signal], some[signal]) and every[quiet].abs().min() > 0
    ratio = some[quiet] / every[quiet]
    kept = ratio[:, 0] > 0
    assert torch.allclose(ratio, torch.where(kept, 4.0, 0.0)[:, None].expand_as(ratio))
    assert 24 <= kept.sum() <= 58  # 160 draws at .25: 40, and 3.2 standard deviations about it


def test_log_ratios_and_gradient_of_an_adapter(tmp_path, many_forwards):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=True)
    found = [
        train(
            tmp_path,
            peft_config=lora,
            settings={"share_prompts": share, "max_steps": 3},
            rollout_func=fixed_rollouts,
            train_dataset=ragged(),
        )[0]
        for share in (True, False)
    ]
    assert_close(found[0].gradients[2], found[1].gradients[2])
    assert found[0].column("free_energy/kl") == pytest.approx(found[1].column("free_energy/kl"), rel=1e-3, abs=1e-6)


def test_under_trl_by_setting_the_gradient_is_grpo_trainers(tmp_path, many_forwards):
    small.model().save_pretrained(tmp_path / "model")
    grads = []
    for trainer_class, config_class, own in (
        (GRPOTrainer, GRPOConfig, {}),
        (FreeEnergyTrainer, FreeEnergyConfig, {"estimator": "trl", "share_prompts": True}),
    ):
        record, _ = small.run(
            trainer_class,
            config_class,
            tmp_path,
            settings={"beta": 0.1, "max_steps": 1, "max_grad_norm": 0.0, **small.ROLLOUTS, **own},
            model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
            reward_funcs=[small.length_reward],
            train_dataset=small.prompts(),
            rollout_func=fixed_rollouts,
        )
        grads.append(record.gradients[0])
    assert apart(grads[1], grads[0]) <= 1e-5


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"gradient_checkpointing": True}, {}, "gradient_checkpointing: false"),
        ({"per_device_train_batch_size": 6, "gradient_accumulation_steps": 2}, {}, "multiple of num_generations: 4"),
        ({}, {"config": MistralConfig(**IDS, **SIZES, sliding_window=8)}, "no plain key-value cache"),
    ],
    ids=["checkpointing", "groups in pieces", "sliding window"],
)
def test_where_prompts_cannot_be_shared_it_is_said_once_and_training_goes_on(
    tmp_path, caplog, settings, arguments, words
):
    if arguments:
        torch.manual_seed(0)
        arguments = {"model": AutoModelForCausalLM.from_config(arguments["config"])}
    with caplog.at_level(logging.WARNING, logger="fe_posttrain"):
        record, _ = train(tmp_path, settings={"max_steps": 2, **settings}, **arguments)
    said = [r.message for r in caplog.records if r.message.startswith("share_prompts: ")]
    assert len(said) == 1 and words in said[0]
    assert record.column("free_energy/kl")[0] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("shares", [True, False])
def test_absolute_positions_are_right_where_prompts_are_shared(tmp_path, caplog, shares):
    """TRL's forward shifts the positions of padded rows: there the sampler's log-probs are not those of the loss."""
    settings = {"learning_rate": 1e-9, "max_steps": 3, "share_prompts": shares}
    with caplog.at_level(logging.WARNING, logger="fe_posttrain"):
        record, _ = train(tmp_path, model=build("gpt2"), train_dataset=ragged(), settings=settings)
    assert record.column("free_energy/kl") == [pytest.approx(0.0, abs=1e-4)] * 3
    assert sum("scores its rollouts once more" in r.message for r in caplog.records) == (0 if shares else 1)


def test_a_model_that_a_cache_misleads_is_forwarded_whole(tmp_path, caplog, monkeypatch):
    """What comes after a cached prompt is made to stand one position too far."""
    inputs = SharedPrompts.inputs

    def shifted(self, owner, completion_ids):
        found = inputs(self, owner, completion_ids)
        return found | {"position_ids": found["position_ids"] + 1}

    wanted, _ = first_gradient(tmp_path, build("gpt2"), share_prompts=False)
    monkeypatch.setattr(SharedPrompts, "inputs", shifted)
    with caplog.at_level(logging.WARNING, logger="fe_posttrain"):
        found, trainer = first_gradient(tmp_path, build("gpt2"))
    assert not (trainer._shares_prompts or trainer._keeps_groups)
    assert sum("against a cache this model gives other log-probs" in r.message for r in caplog.records) == 1
    assert_close(found, wanted, 1e-6)


def test_columns_that_pad_to_a_multiple_stay_alike(tmp_path, many_forwards):
    """`pad_to_multiple_of` widens TRL's tensors; the sampler's entropies go along."""
    record, _ = train(tmp_path, settings={"pad_to_multiple_of": 16, "beta": 0.0, "max_steps": 2})
    assert len(record.column("entropy")) == 2

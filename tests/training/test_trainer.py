"""The trainer's own step against hand-written arithmetic, and the guards around it."""

import logging
import math

import pandas as pd
import pytest
import small
import torch
from by_hand import BETA, LENGTH, WEIGHT, assert_close, fixed_rollouts, gradients_of, log_probs_with_grad, train
from peft import LoraConfig, get_peft_model

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks import digits
from fe_posttrain.training.reward_faults import RewardError


@pytest.mark.parametrize("estimator", ["sequence", "sequence_to_go"])
@pytest.mark.parametrize("accumulation", [1, 4], ids=["one batch", "four micro-batches"])
def test_gradient_of_a_step_equals_hand_arithmetic(tmp_path, estimator, accumulation):
    """With the policy moved off its reference, -1/N sum_rows sum_t A_t grad log pi_t / divisor, written as loops."""
    settings = {
        "estimator": estimator,
        "reward_energy_weight": WEIGHT,
        "max_steps": 2,
        "per_device_train_batch_size": 16 // accumulation,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 0.05,
        "optim": "sgd",
    }
    start, reference = small.model(), small.model()
    record, trainer = train(tmp_path, settings=settings, model=start, rollout_func=fixed_rollouts)

    # Redo both steps by hand: the first moves the policy away from its reference.
    policy = small.model()
    for step in range(2):
        prompt_ids, completion_ids = trainer.drawn if step == 1 else _first_draw(policy)
        rewards = small.length_reward(completion_ids)
        with torch.no_grad():
            reference_rows = log_probs_with_grad(reference, prompt_ids, completion_ids)
        rows = log_probs_with_grad(policy, prompt_ids, completion_ids)
        loss = 0.0
        for i, row in enumerate(rows):
            group = range(i // 4 * 4, i // 4 * 4 + 4)
            for t in range(len(row)):
                shaped = []
                for j in group:
                    ratio = (rows[j] - reference_rows[j]).detach()
                    charged = ratio.sum() if estimator == "sequence" else ratio[t:].sum()
                    shaped.append(WEIGHT * rewards[j] - BETA * charged)
                others = sum(s for s, j in zip(shaped, group, strict=True) if j != i) / 3
                loss = loss - (shaped[i % 4] - others) * row[t]
        wanted = gradients_of(loss / (len(rows) * LENGTH), policy)
        assert_close(record.gradients[step], wanted)
        with torch.no_grad():
            for name, p in policy.named_parameters():
                p -= record.logs[step]["learning_rate"] * wanted[name]


def _first_draw(policy):
    class Holder:
        model = policy

    prompts = small.prompts()["prompt"]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(small.SETTINGS["seed"])).tolist()
    fixed_rollouts([prompts[i] for i in order[:4] for _ in range(4)], Holder)
    return Holder.drawn


def test_demonstration_term_is_summed_over_tokens_and_averaged_over_sequences(tmp_path):
    demos = small.demonstrations(6)
    settings = {
        "demonstration_energy_weight": 0.7,
        "reward_energy_weight": 0.0,
        "beta": 0.0,
        "beta_schedule": {"linear": {"final": 1e-9}},  # beta is 0 at step 0, yet the run is no SFT: its divisor is F's
        "per_device_demonstration_batch_size": 6,
        "loss_divisor": 5.0,
    }
    record, _ = train(tmp_path, settings=settings, demo_dataset=demos, reward_funcs=None)
    model, tokenizer = small.model(), small.TOKENIZER
    completions = [[*tokenizer(y)["input_ids"], tokenizer.eos_token_id] for y in demos["completion"]]
    rows = log_probs_with_grad(model, tokenizer(list(demos["prompt"]))["input_ids"], completions)
    energy = -0.7 * sum(row.sum() for row in rows) / 6
    assert_close(record.gradients[0], gradients_of(energy / 5.0, model))
    assert record.logs[0]["free_energy/demonstration"] == pytest.approx(energy.item(), rel=1e-5)


def test_paired_demonstrations_are_those_of_the_prompts_rolled_out(tmp_path):
    seen = []

    def reward(prompts, completions, **columns):
        seen.append(sorted(columns))
        return [0.0] * len(prompts)

    rows = small.prompts()
    rows = rows.add_column("demonstration", [digits.demonstration(x) for x in rows["prompt"]])
    settings = {"demonstration_energy_weight": 1.0, "beta": 0.0, "loss_divisor": 1.0}
    record, trainer = train(
        tmp_path, settings=settings, train_dataset=rows, rollout_func=fixed_rollouts, reward_funcs=[reward]
    )
    model, tokenizer = small.model(), small.TOKENIZER
    prompt_ids = trainer.drawn[0][::4]
    completions = [
        [*tokenizer(digits.demonstration(x))["input_ids"], tokenizer.eos_token_id]
        for x in tokenizer.batch_decode(prompt_ids)
    ]
    energy = -sum(row.sum() for row in log_probs_with_grad(model, prompt_ids, completions)) / 4
    assert_close(record.gradients[0], gradients_of(energy, model))  # rewards are equal: no other term
    assert "demonstration_row" not in seen[0] and "demonstration" in seen[0]


def test_older_rollouts_use_the_log_probs_of_the_policy_of_now(tmp_path):
    """Second pass over the same rollouts: s is recomputed, and equals hand arithmetic with the token ratio."""
    settings = {"num_iterations": 2, "max_steps": 2, "learning_rate": 0.05, "optim": "sgd", "epsilon": 100.0}
    record, trainer = train(tmp_path, settings=settings, rollout_func=fixed_rollouts)
    for row in record.logs:  # both steps log F, the second one on the first one's rollouts
        assert row["free_energy/total"] == pytest.approx(row["free_energy/reward"] + BETA * row["free_energy/kl"])
    prompt_ids, completion_ids = trainer.drawn
    rewards = small.length_reward(completion_ids)
    old = small.model()
    policy = small.model()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p -= record.logs[0]["learning_rate"] * record.gradients[0][name]
        old_rows = log_probs_with_grad(old, prompt_ids, completion_ids)  # also the reference: the run's first step
    loss = 0.0
    for i, row in enumerate(log_probs_with_grad(policy, prompt_ids, completion_ids)):
        group = range(i // 4 * 4, i // 4 * 4 + 4)
        shaped = rewards[i] - BETA * (row - old_rows[i]).detach().sum()
        baseline = sum(rewards[j] for j in group if j != i) / 3  # of the first pass, when log pi was log ref
        loss = loss - ((row - old_rows[i]).exp() * (shaped - baseline)).sum()
    assert_close(record.gradients[1], gradients_of(loss / (len(rewards) * LENGTH), policy))


def test_reference_is_a_snapshot_of_an_in_memory_model(tmp_path):
    model = small.model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    record, trainer = train(tmp_path, settings={"max_steps": 3}, model=model)
    reference = dict(trainer.ref_model.named_parameters())
    assert all(torch.equal(p, reference[name]) for name, p in before.items())
    assert not small.same_weights(trainer.model, trainer.ref_model)
    assert record.logs[0]["free_energy/kl"] == pytest.approx(0.0, abs=1e-5)
    assert record.logs[2]["free_energy/kl"] != pytest.approx(0.0, abs=1e-5)


def test_model_changed_after_the_snapshot_is_an_error(tmp_path):
    args = FreeEnergyConfig(str(tmp_path), **small.SETTINGS, **small.ROLLOUTS, beta=BETA, max_steps=1)
    trainer = FreeEnergyTrainer(
        small.model(), [small.length_reward], args, small.prompts(), processing_class=small.TOKENIZER
    )
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(torch.randn_like(trainer.model.lm_head.weight))
    with pytest.raises(ValueError, match=r"differ by .* nats per token before the first update"):
        trainer.train()


@pytest.mark.parametrize("estimator", ["sequence", "trl"])
def test_lora_reference_is_the_model_with_its_adapter_disabled(tmp_path, estimator):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    settings = {"max_steps": 4, "learning_rate": 0.02, "estimator": estimator}
    record, trainer = train(tmp_path, settings=settings, peft_config=lora)
    assert trainer.ref_model is None
    base = trainer.model.get_base_model()
    with trainer.model.disable_adapter():
        ids = torch.tensor([[5, 6, 7]])
        assert torch.allclose(base(ids).logits, small.model()(ids).logits, atol=1e-6)
    kl = record.column("free_energy/kl")
    assert kl[0] == pytest.approx(0.0, abs=1e-5) and abs(kl[-1]) > 1e-4


def test_a_peft_model_keeps_a_frozen_copy_of_its_adapter_as_reference(tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(small.model(), lora)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if ".default." in name}
    record, trainer = train(tmp_path, settings={"max_steps": 2, "learning_rate": 0.02}, model=model)
    parameters = dict(trainer.model.named_parameters())
    assert before
    for name, p in before.items():
        assert torch.equal(parameters[name.replace(".default.", ".ref.")], p)
        assert not torch.equal(parameters[name], p)
    assert record.logs[0]["free_energy/kl"] == pytest.approx(0.0, abs=1e-5)


def test_evaluation_measures_the_same_terms_and_leaves_training_alone(tmp_path):
    settings = {
        **small.SETTINGS,
        **small.ROLLOUTS,
        "max_steps": 2,
        "beta": BETA,
        "per_device_eval_batch_size": 8,
        "num_generations_eval": 2,
    }
    args = FreeEnergyConfig(str(tmp_path), **settings)
    trainer = FreeEnergyTrainer(
        small.model(),
        [small.length_reward],
        args,
        small.prompts(),
        eval_dataset=small.prompts(8),
        processing_class=small.TOKENIZER,
    )
    trainer.train()
    metrics = trainer.evaluate()
    logged = trainer.state.log_history[-1]
    total = -logged["eval_reward"] + BETA * logged["eval_free_energy/kl"]
    assert logged["eval_free_energy/total"] == pytest.approx(total, abs=1e-5)
    assert math.isfinite(metrics["eval_loss"])


def test_logged_terms_add_up_and_the_gap_is_the_closed_form(tmp_path):
    rows = small.prompts().add_column("reference_p", [0.25] * 40)
    zero_one = lambda completion_ids, **_: [float(len(ids) % 2) for ids in completion_ids]  # noqa: E731
    settings = {"max_steps": 3, "beta": 0.5, "beta_schedule": {"linear": {"final": 0.25}}}
    record, _ = train(tmp_path, settings=settings, train_dataset=rows, reward_funcs=[zero_one])
    assert record.column("free_energy/beta") == [0.5, 0.375, 0.25]
    for row, beta in zip(record.logs, [0.5, 0.375, 0.25], strict=True):
        total = -row["reward"] + beta * row["free_energy/kl"]
        optimum = -beta * math.log(0.75 + 0.25 * math.exp(1 / beta))  # Z = (1 - p) + p e^{w_r/beta}
        assert row["free_energy/total"] == pytest.approx(total, abs=1e-6)
        assert row["free_energy/gap"] == pytest.approx(total - optimum, abs=1e-5)


def test_the_table_of_completions_shows_the_advantages_that_train(tmp_path):
    settings = {"log_completions": True, "num_completions_to_print": 0, "max_steps": 1, "beta": 0.0}
    train(tmp_path, settings=settings)
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    rewards, advantages = table["length_reward"].tolist(), table["advantage"].tolist()
    for i, advantage in enumerate(advantages):
        others = [rewards[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        assert advantage == pytest.approx(rewards[i] - sum(others) / 3, abs=1e-5)


def test_pure_demonstrations_generate_nothing(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a rollout was made")

    monkeypatch.setattr(FreeEnergyTrainer, "_rollout", staticmethod(never))
    monkeypatch.setattr(FreeEnergyTrainer, "_generate", never)
    settings = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "beta": 0.0, "max_steps": 2}
    record, _ = train(tmp_path, settings=settings, demo_dataset=small.demonstrations(), reward_funcs=None)
    assert len(record.logs) == 2 and "reward" not in record.logs[0]


@pytest.mark.parametrize("reward_funcs", [None, [small.length_reward]], ids=["by their loss", "by rollouts"])
def test_pure_demonstrations_evaluate(tmp_path, reward_funcs):
    args = FreeEnergyConfig(
        str(tmp_path),
        **{**small.SETTINGS, "max_steps": 1, "per_device_eval_batch_size": 8, "num_generations": 4},
        reward_energy_weight=0.0,
        demonstration_energy_weight=1.0,
        beta=0.0,
        max_completion_length=8,
    )
    trainer = FreeEnergyTrainer(
        small.model(),
        reward_funcs,
        args,
        demo_dataset=small.demonstrations(),
        eval_dataset=small.prompts(8) if reward_funcs else small.demonstrations(16),
        processing_class=small.TOKENIZER,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == metrics["eval_loss"]
    assert trainer.state.log_history[-1].get("eval_reward" if reward_funcs else "eval_mean_token_accuracy") is not None


def test_nothing_is_sent_to_anybody(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **words: sent.append(words))
    monkeypatch.delenv("CI", raising=False)
    train(tmp_path)
    assert sent == []


def test_an_infinite_reward_stops_the_run_and_names_function_and_row(tmp_path):
    def grade(completions, **_):
        return [float("inf") if i == 5 else 0.0 for i in range(len(completions))]

    model = small.model()
    with pytest.raises(RewardError, match=r"grade: row 5: gave inf"):
        train(tmp_path, model=model, reward_funcs=[grade])
    assert small.same_weights(model, small.model())


def test_a_gradient_that_is_not_finite_names_its_parameter(tmp_path):
    model = small.model()
    model.model.norm.weight.register_hook(lambda grad: grad * float("nan"))
    with pytest.raises(FloatingPointError, match=r"gradient: not finite in 1 of \d+ parameters \(model.norm.weight\)"):
        train(tmp_path, model=model, settings={"max_grad_norm": 1.0})
    assert small.same_weights(model, small.model())


def test_a_demonstration_that_is_not_finite_names_its_row(tmp_path, monkeypatch):
    def poison(self, *words):
        batches = original(self, *words)
        batches[0].weights[2] = float("nan")
        return batches

    from fe_posttrain.training.demonstrations import DemonstrationStream

    original = DemonstrationStream.for_step
    monkeypatch.setattr(DemonstrationStream, "for_step", poison)
    model = small.model()
    with pytest.raises(FloatingPointError, match="demonstration: not finite"):
        train(
            tmp_path,
            model=model,
            settings={"demonstration_energy_weight": 1.0},
            demo_dataset=small.demonstrations(),
        )
    assert small.same_weights(model, small.model())


def test_what_changes_the_optimum_is_said_once_in_plain_words(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="fe_posttrain"):
        train(tmp_path, settings={"scale_rewards": "group", "top_p": 0.9, "num_iterations": 2})
    said = [record.message for record in caplog.records if "does not end at the optimum" in record.message]
    assert len(said) == 1
    for word in ("standard deviation", "truncated policy", "clipped at epsilon"):
        assert word in said[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="fe_posttrain"):
        train(tmp_path)
    assert not [record for record in caplog.records if record.name.startswith("fe_posttrain")]


@pytest.mark.parametrize(
    "own",
    [{"generation_kwargs": {"num_beams": 1}}, {"temperature": 0.7}, {"top_k": 5}, {"gradient_checkpointing": True}],
)
def test_other_ways_to_sample_still_start_at_the_reference(tmp_path, own):
    record, _ = train(tmp_path, settings={"max_steps": 2, **own})
    assert record.logs[0]["free_energy/kl"] == pytest.approx(0.0, abs=1e-4)


def test_dropout_is_off_where_rollouts_are_made(tmp_path):
    record, trainer = train(tmp_path, model=small.model(attention_dropout=0.5), settings={"max_steps": 2})
    assert record.logs[0]["free_energy/kl"] == pytest.approx(0.0, abs=1e-4)
    trainer.model.train()
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(trainer.model(ids).logits, trainer.model(ids).logits)


def test_kl_and_demonstrations_without_reward_roll_out_the_prompts(tmp_path):
    seen = []

    def watch(prompts, trainer):
        seen.extend(prompts)
        return fixed_rollouts(prompts, trainer)

    settings = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0}
    demos = digits.dataset(["barrier"], 40, seed=0, demonstrations=True)
    record, _ = train(tmp_path, settings=settings, demo_dataset=demos, reward_funcs=None, rollout_func=watch)
    assert set(seen) <= set(small.prompts()["prompt"])
    assert record.logs[0]["free_energy/reward"] == 0.0 and "free_energy/kl" in record.logs[0]
    train(tmp_path, settings={"reward_energy_weight": 0.0}, reward_funcs=None)  # the KL alone


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"demonstration_energy_weight": 1.0}, {}, "demo_dataset: missing"),
        ({}, {"demo_dataset": small.demonstrations(4)}, "demonstration_energy_weight: 0"),
    ],
)
def test_data_and_weights_must_agree(tmp_path, settings, arguments, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, settings=settings, **arguments)

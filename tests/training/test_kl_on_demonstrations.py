"""`kl_sampler: demonstrations`: SFT's step with beta/2 l^2 a sequence, against loops over rows without padding."""

import math

import pytest
import small
import torch
from by_hand import assert_close
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks import digits
from fe_posttrain.training.announcements import what_changes_the_optimum
from fe_posttrain.training.log_ratios import Demonstrated

BETA, WEIGHT, ROWS = 0.3, 0.7, 12
PENALISED = {
    "reward_energy_weight": 0.0,
    "demonstration_energy_weight": WEIGHT,
    "beta": BETA,
    "kl_sampler": "demonstrations",
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": ROWS,
    "num_generations": 2,
}
SGD = {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "cache"))


def train(folder, *, settings=None, rows=None, **arguments):
    rows = small.demonstrations(ROWS) if rows is None else rows
    arguments = {"model": small.model(), "demo_dataset": rows, **arguments}
    return small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        folder,
        settings={**PENALISED, "max_steps": 2, **(settings or {})},
        **arguments,
    )


def log_probs_of(model, rows) -> list[torch.Tensor]:
    """Row by row, without padding: the log-probs of each completion's tokens."""
    found = []
    for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True):
        start = small.TOKENIZER(prompt)["input_ids"]
        ids = [*small.TOKENIZER(completion)["input_ids"], small.TOKENIZER.eos_token_id]
        logits = model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0])
    return found


def by_hand(policy, reference, rows, beta: float):
    """[sum over rows of w_d nll + beta/2 l^2] / trained tokens, its gradient, and l of each row."""
    log_policy = log_probs_of(policy, rows)
    with torch.no_grad():
        log_reference = log_probs_of(reference, rows)
    ratios = [a.sum() - b.sum() for a, b in zip(log_policy, log_reference, strict=True)]
    loss = sum(beta / 2 * ratio**2 - WEIGHT * row.sum() for ratio, row in zip(ratios, log_policy, strict=True))
    policy.zero_grad()
    (loss / sum(len(row) for row in log_policy)).backward()
    nll = -sum(row.sum().item() for row in log_policy) / len(log_policy)
    return {n: p.grad for n, p in policy.named_parameters()}, [ratio.item() for ratio in ratios], nll


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"per_device_train_batch_size": ROWS // 4, "gradient_accumulation_steps": 4},
        {"packing": True, "max_length": 64},
        {"padding_free": True, "per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2},
        {"temperature": 0.5},
        {"reference_cache_mib": 0},
        {
            "train_sampling_strategy": "group_by_length",
            "per_device_train_batch_size": ROWS // 3,
            "gradient_accumulation_steps": 3,
        },
    ],
    ids=["padded", "accumulated", "packed", "padding-free", "another sampling temperature", "no cache", "by length"],
)  # fmt: skip
def test_gradients_of_two_steps_equal_hand_arithmetic(tmp_path, own):
    """The first step moves the policy off its reference, the second is taken with l != 0."""
    rows = small.demonstrations(ROWS)
    record, _ = train(tmp_path, settings={**SGD, **own}, rows=rows)
    policy, reference = small.model(), small.model()
    for step in range(2):
        wanted, ratios, nll = by_hand(policy, reference, rows, BETA)
        assert_close(record.gradients[step], wanted)
        row, penalty = record.logs[step], sum(ratio**2 for ratio in ratios) / 2 / ROWS
        assert (penalty > 1e-3) == (step == 1)
        assert row["free_energy/demonstration_penalty"] == pytest.approx(penalty, rel=1e-4, abs=1e-8)
        assert row["free_energy/demonstration"] == pytest.approx(WEIGHT * nll, rel=1e-5)
        assert row["free_energy/beta"] == BETA
        assert row["free_energy/total"] == pytest.approx(WEIGHT * nll + BETA * penalty, rel=1e-5)
        with torch.no_grad():
            for name, p in policy.named_parameters():
                p -= SGD["learning_rate"] * wanted[name]


def test_the_schedule_of_beta_applies(tmp_path):
    rows = small.demonstrations(ROWS)
    settings = {**SGD, "max_steps": 3, "beta": 0.0, "beta_schedule": {"linear": {"final": 1.0}}}
    record, _ = train(tmp_path, settings=settings, rows=rows)
    assert record.column("free_energy/beta") == [0.0, 0.5, 1.0]
    policy, reference = small.model(), small.model()
    for step, beta in enumerate((0.0, 0.5, 1.0)):
        wanted, _, _ = by_hand(policy, reference, rows, beta)
        assert_close(record.gradients[step], wanted)
        with torch.no_grad():
            for name, p in policy.named_parameters():
                p -= SGD["learning_rate"] * wanted[name]


def test_training_ends_where_l_is_the_weight_over_beta(tmp_path):
    """Two demonstrations that the reference gives e^-20 and less have room for l = w_d/beta = 4."""
    rows = Dataset.from_list([{"prompt": x, "completion": digits.demonstration(x)} for x in small.prompts(2)["prompt"]])
    settings = {
        "max_steps": 300,
        "per_device_train_batch_size": 2,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "linear",
        "demonstration_energy_weight": 1.0,
        "beta": 0.25,
    }
    record, trainer = train(tmp_path, settings=settings, rows=rows)
    with torch.no_grad():
        pairs = zip(log_probs_of(trainer.model, rows), log_probs_of(small.model(), rows), strict=True)
        ratios = [(a.sum() - b.sum()).item() for a, b in pairs]
    assert ratios == pytest.approx([4.0, 4.0], abs=0.02)
    assert record.logs[-1]["free_energy/demonstration_penalty"] == pytest.approx(4.0**2 / 2, abs=0.1)


def test_no_rollout_is_made(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a rollout was made")

    monkeypatch.setattr(FreeEnergyTrainer, "_rollout", staticmethod(never))
    monkeypatch.setattr(FreeEnergyTrainer, "_generate", never)
    record, trainer = train(tmp_path)
    assert not trainer.args.generates and len(record.logs) == 2 and "free_energy/kl" not in record.logs[0]


def test_evaluation_logs_the_same_terms(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, **SGD}
    rows = small.demonstrations(ROWS)
    _, trainer = train(tmp_path, settings=settings, rows=rows, eval_dataset=rows)
    logged = [row for row in trainer.state.log_history if "eval_loss" in row]
    policy = small.model()
    wanted, _, _ = by_hand(policy, small.model(), rows, BETA)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            p -= SGD["learning_rate"] * wanted[name]
    _, ratios, nll = by_hand(policy, small.model(), rows, BETA)
    penalty = sum(ratio**2 for ratio in ratios) / 2 / ROWS
    assert logged[0]["eval_free_energy/demonstration_penalty"] == pytest.approx(penalty, rel=1e-3)
    assert logged[0]["eval_free_energy/total"] == pytest.approx(WEIGHT * nll + BETA * penalty, rel=1e-5)


class Scores:
    """Counts the forwards of a reference: calls of the model itself, or of the policy without gradients."""

    def __init__(self, monkeypatch):
        self.count = 0
        original = LlamaForCausalLM.__call__

        def counted(model, *args, **kwargs):
            self.count += not torch.is_grad_enabled()
            return original(model, *args, **kwargs)

        monkeypatch.setattr(LlamaForCausalLM, "__call__", counted)


@pytest.mark.parametrize("own", [{}, {"packing": True, "max_length": 64}], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", ["snapshot", "adapter off", "adapter of its own"])
def test_the_reference_scores_a_demonstration_once(tmp_path, monkeypatch, kind, own):
    """Two epochs of three batches: three forwards of the reference; and none in a second run."""
    rows = small.demonstrations(24)
    settings = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 0.02, **own}

    def arguments():
        if kind == "snapshot":
            return {}
        if kind == "adapter off":
            return {"peft_config": LoraConfig(**LORA)}
        torch.manual_seed(1)
        return {"model": get_peft_model(small.model(), LoraConfig(**LORA, init_lora_weights=False))}

    scores, made = Scores(monkeypatch), []
    runs = []
    for name in ("first", "second"):
        record, trainer = train(tmp_path / name, settings=settings, rows=rows, **arguments())
        made.append(scores.count)
        scores.count = 0
        runs.append(record)
    batches = math.ceil(len(trainer.train_dataset) / 8)
    assert made == [batches, 0] and trainer.state.epoch > 1
    for key in ("loss", "grad_norm", "free_energy/demonstration_penalty"):
        assert runs[0].column(key) == runs[1].column(key)
    penalties = runs[0].column("free_energy/demonstration_penalty")
    assert penalties[0] == pytest.approx(0.0, abs=1e-8) and penalties[-1] > 1e-3


def test_another_adapter_as_reference_has_log_probs_of_its_own(tmp_path, monkeypatch):
    scores = Scores(monkeypatch)
    for i, (seed, alpha) in enumerate([(1, 8), (2, 8), (2, 16)]):  # the last two have the same weights
        torch.manual_seed(seed)
        model = get_peft_model(small.model(), LoraConfig(**LORA, lora_alpha=alpha, init_lora_weights=False))
        record, _ = train(tmp_path / str(i), settings={"max_steps": 1}, model=model)
        assert record.logs[0]["free_energy/demonstration_penalty"] == pytest.approx(0.0, abs=1e-8)
    assert scores.count == 3


def test_packed_rows_find_what_padded_ones_left(tmp_path, monkeypatch):
    rows, scores = small.demonstrations(ROWS), Scores(monkeypatch)
    padded, _ = train(tmp_path / "padded", settings=SGD, rows=rows)
    before = scores.count
    packed, _ = train(tmp_path / "packed", settings={**SGD, "packing": True, "max_length": 64}, rows=rows)
    assert before > 0 and scores.count == before
    assert_close(packed.gradients[1], padded.gradients[1])


def test_a_cache_too_small_for_the_demonstrations_changes_no_number(tmp_path, monkeypatch):
    rows, settings = small.demonstrations(96), {"max_steps": 6, "per_device_train_batch_size": 32}
    whole, _ = train(tmp_path / "whole", settings=settings, rows=rows)
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "small"))
    monkeypatch.setattr("fe_posttrain.training.reference_cache.MIB", 24 * 1024)
    scores = Scores(monkeypatch)
    cramped, _ = train(tmp_path / "cramped", settings={**settings, "reference_cache_mib": 1}, rows=rows)
    assert scores.count > 3
    for key in ("loss", "grad_norm"):
        assert cramped.column(key) == pytest.approx(whole.column(key), rel=1e-4)


def test_a_moving_reference_is_scored_at_every_step(tmp_path, monkeypatch):
    scores = Scores(monkeypatch)
    settings = {"max_steps": 4, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    record, trainer = train(tmp_path, settings={**settings, "learning_rate": 0.01})
    assert scores.count == 4 and not (tmp_path / "cache").exists()
    penalties = record.column("free_energy/demonstration_penalty")
    assert penalties[1] > 1e-4 and penalties[2] == pytest.approx(0.0, abs=1e-8)  # synced after step 2
    assert "sync_ref_model" in " ".join(what_changes_the_optimum(trainer.args))


def test_dropout_is_off(tmp_path):
    record, _ = train(tmp_path, model=small.model(attention_dropout=0.5), settings={"max_steps": 1})
    assert record.logs[0]["free_energy/demonstration_penalty"] == pytest.approx(0.0, abs=1e-8)


def test_a_policy_that_is_not_the_reference_is_an_error(tmp_path):
    settings = {**small.SETTINGS, **PENALISED, "max_steps": 1}
    trainer = FreeEnergyTrainer(
        small.model(), args=FreeEnergyConfig(str(tmp_path), **settings), demo_dataset=small.demonstrations(ROWS),
        processing_class=small.TOKENIZER,
    )  # fmt: skip
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(torch.randn_like(trainer.model.lm_head.weight))
    with pytest.raises(ValueError, match=r"differ by .* nats per token before the first update"):
        trainer.train()


def test_rollouts_of_an_evaluation_must_be_at_temperature_1(tmp_path):
    arguments = {"reward_funcs": [small.length_reward], "eval_dataset": small.prompts(8)}
    with pytest.raises(
        ValueError, match=r"temperature: 0.5 with kl_sampler: demonstrations and evaluation by rollouts"
    ):
        train(tmp_path, settings={"temperature": 0.5}, **arguments)
    _, trainer = train(tmp_path, settings={"max_steps": 1, "per_device_eval_batch_size": 8, **SGD}, **arguments)
    trainer.evaluate()
    assert math.isfinite(trainer.state.log_history[-1]["eval_free_energy/kl"])


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ({"reward_energy_weight": 1.0}, "kl_sampler: demonstrations with reward_energy_weight 1.0"),
        ({"demonstration_energy_weight": 0.0}, "kl_sampler: demonstrations with reward_energy_weight 0.0, demonstr"),
        ({"beta": 0.0}, "kl_sampler: demonstrations .* and beta 0.0; "),
        ({"packing": True, "packing_strategy": "bfd_split"}, "packing_strategy: bfd_split; it cuts sequences"),
        ({"kl_sampler": "rollouts"}, "kl_sampler: 'rollouts'; unknown; write one of policy, demonstrations"),
        ({"reference_cache_mib": -1}, "reference_cache_mib: -1; it is a count"),
    ],
)
def test_settings_that_contradict_it_are_one_line(tmp_path, own, key):
    with pytest.raises(ValueError, match=rf"\n  - {key}") as error:
        FreeEnergyConfig(str(tmp_path), use_cpu=True, **{**PENALISED, **own})
    assert str(error.value).count("\n  - ") == 1


def test_it_is_sft_by_its_defaults_and_says_what_it_optimises(tmp_path):
    args = FreeEnergyConfig(str(tmp_path), use_cpu=True, **PENALISED)
    assert args.is_sft and not args.generates and args.uses_reference and args.disable_dropout
    assert args.learning_rate == 2e-5
    (line,) = what_changes_the_optimum(args)
    assert "demonstration_energy_weight / beta" in line and "not KL(pi || reference)" in line


def test_demonstrations_are_told_apart_alike_when_padded_and_when_flat():
    """Two rows, and one between them without a trained token; a trained first token is nobody's next one."""
    rows = [
        {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
        {"input_ids": [5, 6], "labels": [-100, -100]},
        {"input_ids": [9, 6, 7], "labels": [9, 6, 7]},
    ]
    padded = DataCollatorForLanguageModeling(pad_token_id=0, pad_to_multiple_of=6)(rows)
    flat = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True, pad_to_multiple_of=4)(rows)
    found = Demonstrated.of(padded)
    assert found.tokens == [2, 2] and found == Demonstrated.of(flat)
    padded["input_ids"][0, 0] = 4
    padded["labels"][2, 2] = -100
    changed = Demonstrated.of(padded)
    assert changed.tokens == [2, 1] and not set(changed.rows) & set(found.rows)

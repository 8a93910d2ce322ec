"""Another model as the reference: its KL alone is on-policy distillation."""

import pytest
import small
import torch
from by_hand import BETA, LENGTH, assert_close, fixed_rollouts, gradients_of, log_probs_with_grad
from peft import LoraConfig
from test_resuming import assert_same
from test_resuming import train as resumable
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from fe_posttrain import FreeEnergyConfig, FreeEnergyTrainer
from fe_posttrain.tasks.tokenizer import build_tokenizer
from fe_posttrain.training.alarms import Alarms
from fe_posttrain.training.memory import estimate_memory

ROLLOUTS = {**small.ROLLOUTS, "reward_energy_weight": 0.0}


@pytest.fixture
def teacher(tmp_path) -> LlamaForCausalLM:
    """Larger than the policy, with preferences that depend little on what came before; in `tmp_path / "teacher"`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        config = small.model().config
        config.hidden_size, config.num_hidden_layers, config.tie_word_embeddings = 48, 3, False
        made = LlamaForCausalLM(config)
        made.lm_head.weight.data.mul_(15)
        made.model.embed_tokens.weight.data.add_(1.0)
    made.save_pretrained(tmp_path / "teacher")
    small.TOKENIZER.save_pretrained(tmp_path / "teacher")
    return made.eval()


def distil(tmp_path, *, folder="run", model=None, **settings):
    arguments = {key: settings.pop(key) for key in ("rollout_func", "peft_config", "callbacks") if key in settings}
    return small.run(
        FreeEnergyTrainer,
        FreeEnergyConfig,
        tmp_path / folder,
        settings={
            **ROLLOUTS,
            "beta": BETA,
            "reference_model_name_or_path": str(tmp_path / "teacher"),
            "max_grad_norm": 0.0,
            "max_steps": 1,
            **settings,
        },
        model=small.model() if model is None else model,
        train_dataset=small.prompts(),
        **arguments,
    )


@pytest.mark.parametrize("shares", [True, False], ids=["shared prompts", "padded rows"])
def test_a_step_is_the_gradient_of_the_kl_to_the_teacher(tmp_path, teacher, shares):
    """beta E[(l - mean of the others' l) grad log pi] / divisor, l = log pi - log teacher, written as loops."""
    record, trainer = distil(tmp_path, rollout_func=fixed_rollouts, share_prompts=shares)
    prompt_ids, completion_ids = trainer.drawn
    policy = small.model()
    rows = log_probs_with_grad(policy, prompt_ids, completion_ids)
    with torch.no_grad():
        taught = [row.sum() for row in log_probs_with_grad(teacher, prompt_ids, completion_ids)]
    ratios = [row.sum().detach() - other for row, other in zip(rows, taught, strict=True)]
    loss = 0.0
    for i, row in enumerate(rows):
        others = [ratios[j] for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        loss = loss + BETA * (ratios[i] - sum(others) / 3) * row.sum()
    assert_close(record.gradients[0], gradients_of(loss / (len(rows) * LENGTH), policy))
    kl = sum(ratios) / len(ratios)
    assert record.logs[0]["free_energy/kl"] == pytest.approx(kl.item(), rel=1e-4) and abs(kl) > 1
    assert record.logs[0]["free_energy/total"] == pytest.approx(BETA * kl.item(), rel=1e-4)


def kl_of_the_first_token(policy, teacher) -> float:
    """Mean over prompts of KL(pi(.|x) || teacher(.|x)), exact."""
    prompts = small.TOKENIZER(list(small.prompts()["prompt"]), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        mine, other = (model.eval()(prompts).logits[:, -1].log_softmax(-1) for model in (policy, teacher))
    return (mine.exp() * (mine - other)).sum(1).mean().item()


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapter"])
def test_distillation_comes_closer_to_the_teacher(tmp_path, teacher, lora):
    policy = small.model()
    policy.model.embed_tokens.weight.data.mul_(10)  # the head is tied to it, and beside an adapter it is frozen
    before = kl_of_the_first_token(policy, teacher)
    peft = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    settings = {"max_steps": 30, "per_device_train_batch_size": 64, "max_grad_norm": 1.0, "beta": 1.0}
    record, trainer = distil(tmp_path, model=policy, learning_rate=1e-2, peft_config=peft, **settings)
    kl = record.column("free_energy/kl")
    assert sum(kl[-5:]) < 0.2 * sum(kl[:5])
    assert kl_of_the_first_token(trainer.model, teacher) < 0.6 * before
    assert small.same_weights(trainer.ref_model, teacher) and not trainer.ref_model.training


def test_a_resumed_run_has_the_same_teacher(tmp_path, teacher):
    settings = {**small.ROLLOUTS, "beta": 0.1, "reference_model_name_or_path": str(tmp_path / "teacher")}
    whole = resumable(tmp_path / "whole", settings)
    resumable(tmp_path / "broken", settings, stop=6)
    assert_same(whole, resumable(tmp_path / "broken", settings, resume=True))
    teacher.lm_head.weight.data.add_(1e-3)
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="its weights are not those"):
        resumable(tmp_path / "broken", settings, resume=True)


def test_demonstrations_are_held_to_the_teacher(tmp_path, teacher, monkeypatch):
    """kl_sampler: demonstrations, two runs: the second reads the teacher's log-probs from the cache of the first."""
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "cache"))
    rows, tokenizer = small.demonstrations(8), small.TOKENIZER
    settings = {"reward_energy_weight": 0.0, "demonstration_energy_weight": 1.0, "kl_sampler": "demonstrations"}
    settings |= {"reference_model_name_or_path": str(tmp_path / "teacher"), "beta": BETA, "max_steps": 1}
    completions = [[*tokenizer(y)["input_ids"], tokenizer.eos_token_id] for y in rows["completion"]]
    prompt_ids = tokenizer(list(rows["prompt"]))["input_ids"]
    with torch.no_grad():
        sums = [
            torch.stack([row.sum() for row in log_probs_with_grad(model, prompt_ids, completions)])
            for model in (small.model(), teacher)
        ]
    wanted = ((sums[0] - sums[1]) ** 2 / 2).mean().item()
    for _ in range(2):
        record, _ = small.run(
            FreeEnergyTrainer, FreeEnergyConfig, tmp_path / "run", settings=settings, model=small.model(),
            demo_dataset=rows,
        )  # fmt: skip
        assert record.logs[0]["free_energy/demonstration_penalty"] == pytest.approx(wanted, rel=1e-4)
    assert wanted > 1


def test_another_vocabulary_is_refused_with_both_sizes(tmp_path, teacher):
    own = len(small.TOKENIZER)
    teacher.resize_token_embeddings(own - 2, mean_resizing=False)
    teacher.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=f"has {own - 2} embeddings and {own} tokens, the policy {own} and {own}: few"):
        distil(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / "teacher" / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=f"has {own - 2} embeddings, the policy {own} and {own}: and no tokenizer"):
        distil(tmp_path)
    teacher.resize_token_embeddings(own + 6, mean_resizing=False)
    teacher.save_pretrained(tmp_path / "teacher")
    small.TOKENIZER.save_pretrained(tmp_path / "teacher")
    distil(tmp_path)  # padded further
    other = build_tokenizer()
    text = other.backend_tokenizer.to_str().replace('"0":', '"x":', 1).replace('"R":', '"0":', 1)
    other = type(other)(tokenizer_object=type(other.backend_tokenizer).from_str(text))
    other.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"is token \d+ of the policy and .* there; the KL compares"):
        distil(tmp_path)


def test_weights_that_a_teacher_lacks_are_not_drawn_at_random(tmp_path, teacher):
    teacher.model.save_pretrained(tmp_path / "teacher")  # without its head
    with pytest.raises(ValueError, match=r"reference_model_name_or_path: .*: no weights for lm_head"):
        distil(tmp_path)


def test_another_architecture_teaches_too(tmp_path, teacher):
    config = GPT2Config(vocab_size=len(small.TOKENIZER), n_positions=64, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "teacher")
    record, _ = distil(tmp_path)
    assert record.logs[0]["free_energy/kl"] != 0 and record.gradients[0]


def test_a_kl_that_starts_high_is_no_alarm_until_it_grows(tmp_path, teacher):
    alarms = Alarms(say=lambda line: None)
    distil(tmp_path, callbacks=[alarms])
    kl = alarms._alarms["kl_runaway"]
    found = [kl.see(step, {"free_energy/kl": 40.0 + step % 2, "free_energy/reward": 0.0}) for step in range(1, 100)]
    assert not any(finding.bad for finding in found if finding)
    found = [kl.see(step, {"free_energy/kl": 160.0, "free_energy/reward": 0.0}) for step in range(100, 120)]
    assert found[-1].bad


def test_the_teachers_memory_is_counted_without_loading_it(tmp_path, teacher):
    args = FreeEnergyConfig(
        "unused", beta=0.1, use_cpu=True, bf16=False, reference_model_name_or_path=str(tmp_path / "teacher")
    )
    (part,) = [part for part in estimate_memory(args, small.model(), 8, 0) if part.name == "reference"]
    assert part.size == 4 * sum(p.numel() for p in teacher.parameters())

"""The dry run as a person reads it, on the testbed and on conversations of one's own."""

import dataclasses
import io
import json
from pathlib import Path

import datasets
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.data import load
from fe_posttrain.recipe.plan import equation, highlighted, print_plan, readable
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining import reference_model
from fe_posttrain.tasks.tokenizer import build_tokenizer
from fe_posttrain.training.config import FreeEnergyConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def plan(values: dict, path: str) -> str:
    """What a person sees at 100 columns, without colour."""
    names = {field.name for field in dataclasses.fields(RunSettings)}
    settings = RunSettings(**{key: value for key, value in values.items() if key in names})
    args = FreeEnergyConfig("unused", **{key: value for key, value in values.items() if key not in names})
    return printed(settings, args, path)


def printed(settings: RunSettings, args: FreeEnergyConfig, path: str) -> str:
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    seen = Console(file=io.StringIO(), width=100)
    print_plan(seen, settings, args, model, tokenizer, load(settings, args, tokenizer, path))
    return "\n".join(line.rstrip() for line in seen.file.getvalue().splitlines())


def recipe(name: str, **changed) -> str:
    words = [word for key, value in changed.items() for word in (f"--{key}", str(value))]
    settings, args, _ = resolve(ROOT / "recipes" / f"{name}.yaml", words)
    return printed(settings, args, str(reference_model()))


def test_the_plan_of_reinforcement_learning():
    seen = recipe("rl", prompt_rows=256)
    for line in (
        "F(pi) = 1 E[-reward] + 0.05 KL(pi || reference)",
        "parameters  108,480, all trained",
        "rewards     digits",
        "a step      1 process x 128 a device x 1 accumulated = 128 completions, 16 of each prompt: 8 prompts",
        "steps       200 = 6.25 passes over 256 prompts",  # 256 / 8 = 32 steps a pass
        "sampled     25,600 completions of at most 12 tokens: at most 307,200 tokens",
        "reference       423.75 KiB",  # 108,480 x 4 / 1024
        "kept window     423.75 KiB",
        "support     160 probe prompts x 64 draws = 10,240 completions at the end; once and cached, 10,240 to",
        "337,920 of the reference",  # 160 x 64; 160 x (64 + 2 x 1024)
        "Not counted: activations",
    ):
        assert line in seen
    first, second = digits.dataset({"tail_10": 1, "tail_03": 1, "basin": 1, "barrier": 1}, 256, 42)["prompt"][:2]
    for i, prompt in ((1, first), (2, second)):
        assert f"Prompt {i} as the model sees it: {len(prompt)} tokens\n{prompt}\n" in seen
    assert "Demonstration" not in seen and "away from the optimum" not in seen


def test_the_plan_of_supervised_fine_tuning():
    seen = recipe("sft", demonstrations={"barrier": 1}, demonstration_rows=128)
    first = digits.dataset({"barrier": 1}, 128, 43, demonstrations=True)[0]
    for line in (
        "F(pi) = 1 E_demonstrations[-log pi]",
        "a step        1 process x 64 a device x 1 accumulated = 64 demonstrations",
        "steps         300 = 150.00 passes over 128 demonstrations",
        # Two letters, five digits; two lists, `>` and the end token: 7 + 12 tokens a row.
        "demonstrated  128 demonstrations of 2,432 tokens, 1,536 of them trained, x 150.00 = 364,800 tokens",
        f"Demonstration 1: 19 tokens, 12 trained: in ⟦ ⟧\n{first['prompt']}⟦{first['completion']}<eos>⟧",
    ):
        assert line in seen
    assert "Prompt 1" not in seen and "KV cache" not in seen


def test_the_plan_of_a_penalty_on_demonstrations(monkeypatch):
    monkeypatch.setattr("fe_posttrain.recipe.plan.cache_file", lambda: Path("/kept/here"))
    changed = {"beta": 0.1, "kl_sampler": "demonstrations", "demonstrations": {"barrier": 1}, "demonstration_rows": 128}
    seen = recipe("sft", **changed)
    for line in (
        "F(pi) = 1 E_demonstrations[-log pi] + 0.1/2 E_demonstrations[(log pi - log reference)^2]",
        "reference     scores a demonstration once, in the first pass of the first run: 6.00 KiB of log-probs",
        "/kept/here, at most 1,024 MiB",  # 1,536 trained tokens x 4 bytes are 6 KiB
        "reference       423.75 KiB",
        "kl_sampler: demonstrations penalises the squared log-ratio",
    ):
        assert line in seen
    assert "sampled" not in seen and "kept start" not in seen
    assert "reference     scores every batch" in recipe("sft", **changed, reference_cache_mib=0)


@pytest.mark.parametrize("paired", [False, True])
def test_the_plan_of_a_mixture_shows_two_of_each(paired):
    seen = recipe("mixture", prompt_rows=64, demonstration_rows=128, demonstrations_paired=paired)
    for line in ("F(pi) = 1 E[-reward] + 0.5 E_demonstrations[-log pi] + 0.02 KL", "Prompt 2", "Demonstration 2"):
        assert line in seen
    assert ("beside them   64 demonstrations a step: 100.00 passes over 128" in seen) == (not paired)


def test_the_plan_of_a_failure_buffer():
    own = {"demonstrations_paired": True, "demonstration_energy_weight": 1.0, "failure_buffer": 32}
    seen = recipe("rl", prompt_rows=128, failure_buffer_batch_size=8, **own)
    for line in (
        "failure buffer  as soon as 32 of 128 demonstrations wait for prompts that failed, they are read",
        "once, 8 a step",
        "failure buffer   847.50 KiB",  # 2 x 108,480 x 4 / 1024
        "failure_buffer: 32: demonstrations are read only of prompts whose rollouts all failed",
    ):
        assert line in seen
    assert "beside them" not in seen and "demonstrated" not in seen


def test_settings_that_move_the_optimum_are_in_the_plan():
    seen = recipe("rl", prompt_rows=16, temperature=0.5)
    assert "away from the optimum of F\n  temperature: 0.5: reward and KL are those of the policy" in seen


TEMPLATE = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> Path:
    """A tiny random model whose tokenizer has one token a byte and no chat template."""
    folder = tmp_path_factory.mktemp("model")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    words = trainers.BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator([], words)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|end|>")
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**shape, **tokens, max_position_embeddings=128)).save_pretrained(folder)
    return folder


def test_conversations_of_ones_own_are_shown_as_the_model_sees_them(chat_model, tmp_path):
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    rows = [{"prompt": [{"role": "user", "content": f"[red]{n}+1?"}], "goal": n + 1} for n in range(8)]
    rows[5]["prompt"][0]["content"] *= 20
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"prompt": "1+1?", "completion": "2"}, {"prompt": "1+2?", "completion": "3"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    seen = plan(
        {
            "dataset_name": str(tmp_path / "p.jsonl"),
            "demonstration_dataset_name": str(tmp_path / "d.jsonl"),
            "system_prompt": "Add.",
            "overlong_prompts": "drop",
            "chat_template_path": str(tmp_path / "chat.jinja"),
            "demonstration_energy_weight": 0.5,
            "num_generations": 2,
            "per_device_train_batch_size": 2,
            "max_completion_length": 32,
            "num_train_epochs": 2,
            "use_cpu": True,
            "report_to": "none",
        },
        str(chat_model),
    )
    # Four marks and a line end after each of two messages, and one token a byte.
    shown = "<|system|>Add.<|end|>\n<|user|>[red]0+1?<|end|>\n<|assistant|>\n"
    assert f"Prompt 1 as the model sees it: {5 + 2 + len('Add.') + len('[red]0+1?')} tokens\n{shown}" in seen
    shown = "<|system|>Add.<|end|>\n<|user|>1+1?<|end|>\n<|assistant|>⟦2<|end|>\n⟧"
    assert f"Demonstration 1: {5 + 2 + 4 + 4 + 3} tokens, 3 trained: in ⟦ ⟧\n{shown}" in seen
    assert "1 of 8 prompts dropped: longer than 96 tokens (row 6)" in seen
    assert "steps         14 = 2.00 passes over 7 prompts" in seen


def test_trained_tokens_are_marked_by_brackets_and_colour():
    tokenizer = build_tokenizer()
    ids = tokenizer("R12>21")["input_ids"]
    text = highlighted(ids, [False] * 3 + [True] + [False] + [True], tokenizer)
    assert text.plain == "R12⟦>⟧2⟦1⟧"
    assert [(text.plain[span.start : span.end], str(span.style)) for span in text.spans] == [
        ("⟦>⟧", "bold green"),
        ("⟦1⟧", "bold green"),
    ]
    long = highlighted(tokenizer("1" * 450)["input_ids"], [True] * 450, tokenizer).plain
    assert long == "⟦" + "1" * 300 + " ... 50 characters ... " + "1" * 100 + "⟧"


def test_sizes_and_schedules_are_readable():
    assert [readable(n) for n in (0, 1023, 1536, 3 << 29, 5 << 40)] == [
        "0 B",
        "1023 B",
        "1.50 KiB",
        "1.50 GiB",
        "5.00 TiB",
    ]
    args = FreeEnergyConfig("unused", beta=0.1, beta_schedule={"linear": {"final": 0.01}}, use_cpu=True)
    assert equation(args) == "F(pi) = 1 E[-reward] + (0.1 -> 0.01) KL(pi || reference)"

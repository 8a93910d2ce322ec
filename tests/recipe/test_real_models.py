"""Recipes for real models: their values, and two steps of each on a random model of the same architecture."""

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from fe_posttrain.recipe import combinations
from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.launch import launch

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("qwen3_0.6b_gsm8k", "qwen3_0.6b_gsm8k_lora", "qwen3_1.7b_gsm8k", "qwen3_1.7b_gsm8k_lora")

# A quarter of the vocabulary are boxed numbers from 0 to 3, so that a random model is right one time in five.
WORDS = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "user", "assistant"]
WORDS += ["what", "is", "and", "plus", "so", "the", "sum", "of", "we", "add", "it", "gives"]
WORDS += [str(n) for n in range(4)] + [f"\\boxed{{{n}{end}}}" for n in range(4) for end in ("", ".0")]
# Qwen3's way: thinking is switched off by an empty block that opens the answer. Here leaving it on is an error.
TURN = "<|im_start|> {{ message.role }} {{ message.content }} <|im_end|> "
OPENING = (
    "<|im_start|> assistant <think> </think>"
    "{% if enable_thinking is not defined or enable_thinking %}{{ raise_exception('thinking is on') }}{% endif %}"
)
TEMPLATE = f"{{% for message in messages %}}{TURN}{{% endfor %}}{{% if add_generation_prompt %}}{OPENING}{{% endif %}}"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory) -> Path:
    """A folder with a random Qwen3 of 17 thousand parameters and a tokenizer of 32 words."""
    folder = tmp_path_factory.mktemp("qwen3")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        max_window_layers=2,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A folder with splits in the form of the task: a conversational prompt, and the number that solves it."""
    folder = tmp_path_factory.mktemp("sums")
    sums = [(a, b) for a in range(4) for b in range(4) if a + b < 4]
    for name, chosen in (("train", sums[:8]), ("test", sums[8:])):
        lines = [
            json.dumps({"prompt": [{"role": "user", "content": f"what is {a} plus {b}"}], "solution": str(a + b)})
            for a, b in chosen
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_value_is_one_that_the_checks_accept(name, monkeypatch):
    monkeypatch.setattr(combinations, "find_spec", lambda package: object())  # as if vllm were installed
    settings, args, model = resolve(RECIPES / f"{name}.yaml", ["--use_cpu", "true"])  # bf16 needs a GPU or this
    assert settings.dataset_name == "gsm8k" and settings.reward_funcs == ["gsm8k"]
    assert args.use_vllm and args.bf16 and args.chat_template_kwargs == {"enable_thinking": False}
    assert args.vllm_mode == ("server" if name == "qwen3_1.7b_gsm8k" else "colocate")
    assert model.use_peft == name.endswith("lora") and not model.lora_dropout * model.use_peft
    # Steps of 1e-6 on weights of .02 are lost in bf16, whose spacing there is 2^-13; adapters are float32 anyway.
    assert model.dtype == ("bfloat16" if model.use_peft else "float32")
    assert args.gradient_checkpointing_kwargs == {"use_reentrant": False}


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_trains_a_random_model_of_its_architecture(name, qwen, rows, tmp_path, capsys):
    small = {
        "model_name_or_path": qwen,
        "dataset_name": rows,
        "output_dir": tmp_path / "run",
        "use_vllm": "false",
        "use_cpu": "true",
        "bf16": "false",
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 8,
    }
    folder = launch(str(RECIPES / f"{name}.yaml"), [word for k, v in small.items() for word in (f"--{k}", str(v))])
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in logged if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert row["free_energy/total"] == pytest.approx(row["free_energy/reward"] + 0.02 * row["free_energy/kl"])
        assert math.isfinite(row["loss"]) and row["grad_norm"] > 0 and 0 < row["reward"] < 1
    assert abs(steps[0]["free_energy/kl"]) < 0.1
    assert 0 <= next(row for row in logged if "eval_reward" in row)["eval_reward"] <= 1
    saved = {path.name for path in (folder / "model").iterdir()}
    assert ("adapter_model.safetensors" if name.endswith("lora") else "model.safetensors") in saved
    assert "step 2/2  F " in capsys.readouterr().out

"""A new user's path: own rows, own reward file and own model folder, three keys in a copied recipe."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fe_posttrain.recipe.launch import Options, launch
from fe_posttrain.recipe.reading import RecipeError

ROOT = Path(__file__).parents[2]
CHAT = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}<e>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
REWARD = '''
def shorter(completions, target, **kwargs):
    """1 for a completion as long as the row's target says, less the farther it is."""
    return [1.0 / (1 + abs(len(c if isinstance(c, str) else c[0]["content"]) - t)) for c, t in zip(completions, target)]

def at_most(completions, length, **kwargs):
    return [float(len(c if isinstance(c, str) else c[0]["content"]) <= length) for c in completions]
'''


@pytest.fixture
def mine(tmp_path):
    """A folder as a user has it: model/, rows.jsonl, rewards.py, none of it ours."""
    letters = [*"abcdefghijklmnopqrstuvwxyz 0123456789?", "<s>", "<u>", "<a>", "<e>", "<pad>"]
    words = Tokenizer(models.WordLevel({x: i for i, x in enumerate(letters)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.decoder = decoders.Fuse()
    words.add_special_tokens(letters[-5:])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<e>", pad_token="<pad>")
    tokenizer.chat_template = CHAT
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(letters),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=128,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    plain = [{"prompt": f"say {i} letters", "target": i % 8} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    chat = [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in plain]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    (tmp_path / "rewards.py").write_text(REWARD)
    return tmp_path


def copied(mine: Path, **changed) -> str:
    """recipes/own.yaml with the three keys changed, as the README tells a new user."""
    text = (ROOT / "recipes" / "own.yaml").read_text()
    for key, value in changed.items():
        text, count = re.subn(rf"^{key}: .*$", f"{key}: {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    (mine / "recipe.yaml").write_text(text)
    return str(mine / "recipe.yaml")


def three_keys(mine: Path, rows: str = "rows.jsonl") -> dict[str, str]:
    return {
        "model_name_or_path": f"{mine}/model",
        "dataset_name": f"{mine}/{rows}",
        "reward_funcs": f"[{mine}/rewards.py:shorter]",
    }


QUICK = ["--max_steps", "2", "--per_device_train_batch_size", "8", "--num_generations", "4", "--logging_steps", "1"]
QUICK += ["--max_completion_length", "10", "--gradient_accumulation_steps", "1"]


def test_three_keys_in_a_copied_recipe_train_ones_own_model(mine, monkeypatch):
    recipe = copied(mine, **three_keys(mine))
    folder = launch(recipe, [*QUICK, "--output_dir", str(mine / "run")])
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 0 < logged[0]["rewards/shorter/mean"] <= 1
    readme = (folder / "model" / "README.md").read_text()
    assert "E[-reward]" in readme and "say " in readme
    snippet = readme.split("```python\n")[1].split("```")[0]
    exec(compile(snippet, "README.md", "exec"), {})  # the snippet that a user copies runs as it stands


def test_conversations_a_system_prompt_arguments_evaluation_and_a_merged_adapter(mine, capsys):
    recipe = copied(mine, **three_keys(mine, "chat.jsonl"))
    lora = ["--use_peft", "true", "--lora_target_modules", "[q_proj]", "--merge_adapter", "true"]
    kept = ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    best = ["--load_best_model_at_end", "true", "--metric_for_best_model", "reward", "--greater_is_better", "true"]
    rewards = ["--reward_funcs", f"[{mine}/rewards.py:shorter, {{'{mine}/rewards.py:at_most': {{length: 4}}}}]"]
    evaluated = ["--eval_dataset_name", f"{mine}/chat.jsonl", "--per_device_eval_batch_size", "8"]
    more = ["--reward_weights", "[1.0, 0.5]", "--system_prompt", "be brief"]
    folder = launch(
        recipe,
        [*QUICK, *lora, *kept, *best, *rewards, *evaluated, *more, "--output_dir", str(mine / "run")],
    )
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evaluations = [row["eval_reward"] for row in logged if "eval_reward" in row]
    assert len(evaluations) == 2 and {"rewards/shorter/mean", "rewards/at_most/mean"} <= logged[0].keys()
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_metric"] == max(evaluations)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "model" / "model.safetensors").is_file()
    AutoModelForCausalLM.from_pretrained(folder / "model")
    recorded = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recorded["files"].keys() == {f"{mine}/chat.jsonl", f"{mine}/rewards.py"}


def test_a_reward_model_judges_beside_a_function(mine):
    config = AutoModelForCausalLM.from_pretrained(mine / "model").config
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(mine / "judge")
    AutoTokenizer.from_pretrained(mine / "model").save_pretrained(mine / "judge")
    judged = ["--reward_model_name_or_path", f"{mine}/judge", "--reward_weights", "[1.0, 0.1]"]
    folder = launch(copied(mine, **three_keys(mine)), [*QUICK, *judged, "--output_dir", str(mine / "run")])
    first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    mean = first["rewards/shorter/mean"] + 0.1 * first["rewards/judge/mean"]
    assert first["free_energy/reward"] == pytest.approx(-mean, abs=1e-5) and first["rewards/judge/std"] > 0


def test_a_dry_run_shows_what_the_model_will_see_and_writes_nothing(mine, capsys):
    recipe = copied(mine, **three_keys(mine, "chat.jsonl"))
    assert launch(recipe, [*QUICK, "--output_dir", str(mine / "run")], Options(dry_run=True)) is None
    shown = capsys.readouterr().out
    assert "F(pi) = " in shown and "<u>say 0 letters<e><a>" in shown and "parameters" in shown
    assert not (mine / "run").exists()


def test_rows_that_cannot_be_used_are_named_before_a_model_is_loaded(mine):
    recipe = copied(mine, **three_keys(mine))
    with open(mine / "rows.jsonl", "a") as file:
        file.write(json.dumps({"prompt": None, "target": 1}) + "\n")
    with pytest.raises(RecipeError, match=r"dataset_name: .*41"):
        launch(recipe, [*QUICK, "--output_dir", str(mine / "run")])
    assert not (mine / "run").exists()


def test_resume_continues_refuses_another_recipe_and_says_when_there_is_nothing(mine, capsys):
    recipe = copied(mine, **three_keys(mine))
    words = [*QUICK, "--save_strategy", "steps", "--save_steps", "1", "--output_dir", str(mine / "run")]
    with pytest.raises(RecipeError, match=r"--resume: which run"):
        launch(recipe, QUICK, Options(resume=True))
    launch(recipe, words, Options(resume=True))
    assert "no complete checkpoint" in capsys.readouterr().out
    first = (mine / "run" / "model" / "model.safetensors").read_bytes()
    with pytest.raises(RecipeError, match=r"is not empty; .*--resume"):
        launch(recipe, words)
    with pytest.raises(RecipeError) as refused:
        launch(recipe, [*words, "--beta", "0.9"], Options(resume=True))
    assert "beta: 0.04 in checkpoint-2, 0.9 now" in str(refused.value) and "--allow-changed-recipe" in str(
        refused.value
    )
    launch(recipe, [*words, "--max_steps", "4"], Options(resume=True, allow_changed_recipe=True))
    assert "changed since checkpoint-2: max_steps: 2 in checkpoint-2, 4 now" in capsys.readouterr().out
    assert (mine / "run" / "model" / "model.safetensors").read_bytes() != first
    (mine / "rows.jsonl").write_text((mine / "rows.jsonl").read_text() + json.dumps({"prompt": "x", "target": 1}))
    with pytest.raises(RecipeError, match=r"files: .*rows\.jsonl"):
        launch(recipe, [*words, "--max_steps", "4"], Options(resume=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr_scheduler_type", "cosine_with_min_lr"], "lr_scheduler_type: cosine_with_min_lr: "),
        (["--optim", "lion_32bit"], "optim: "),
        (["--report_to", "[dvclive]"], "report_to: dvclive; it is not installed"),
        (["--attn_implementation", "flash_attention_2"], "lash"),
        (["--generation_kwargs", "{temperature: 0.3}"], "generation_kwargs: temperature has a key of its own"),
        (["--reward_model_name_or_path", "MINE/model"], "reward_model_name_or_path: .*they would be random"),
    ],
)
def test_what_libraries_would_find_later_is_found_before_the_run_folder_is_used(mine, words, message):
    words = [word.replace("MINE", str(mine)) for word in words]
    with pytest.raises(RecipeError, match=message):
        launch(copied(mine, **three_keys(mine)), [*QUICK, *words, "--output_dir", str(mine / "run")])
    assert not list((mine / "run").glob("*"))


def test_pickled_weights_are_not_loaded(mine):
    import torch

    model = AutoModelForCausalLM.from_pretrained(mine / "model")
    torch.save(model.state_dict(), mine / "model" / "pytorch_model.bin")
    (mine / "model" / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="safetensors"):
        launch(copied(mine, **three_keys(mine)), [*QUICK, "--output_dir", str(mine / "run")])


def test_a_reward_that_fails_ends_the_real_door_with_code_3_and_its_row(mine):
    (mine / "rewards.py").write_text("def shorter(completions, **kwargs):\n    return [1 / 0 for _ in completions]\n")
    words = ["--config", copied(mine, **three_keys(mine)), *QUICK, "--output_dir", str(mine / "run")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert "shorter: row 0: raised ZeroDivisionError: division by zero" in done.stderr and "rewards.py:2" in done.stderr

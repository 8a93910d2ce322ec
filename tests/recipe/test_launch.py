"""The door: real launches of real recipes, a few steps each, and what they leave behind."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from fe_posttrain.recipe.launch import launch
from fe_posttrain.recipe.reading import RecipeError

ROOT = Path(__file__).parents[2]
FAMILIES = {"basin", "tail_10", "tail_03", "tail_005", "barrier"}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_accelerate_launch_trains_and_fills_the_run_folder(tmp_path):
    folder = tmp_path / "run"
    options = ["--max_steps", "3", "--output_dir", str(folder), "--probe_rows", "8"]
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu", "--num_processes", "1"]
    done = subprocess.run(
        [*command, "scripts/train.py", "--config", "recipes/quickstart.yaml", *options],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "150"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for word in ("F(pi) = 1 E[-reward] + 0.05 KL(pi || reference)", "step 3/3  F ", "tail_10", str(folder)):
        assert word in done.stdout
    assert "Traceback" not in done.stderr and "{'loss'" not in done.stdout

    logged = [row for row in rows(folder) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    for row in logged:
        parts = row["free_energy/reward"] + row["free_energy/beta"] * row["free_energy/kl"]
        assert math.isclose(row["free_energy/total"], parts, abs_tol=1e-6)
        assert {"free_energy/gap", "reward", "kl", "grad_norm", "entropy", "completions/mean_length"} <= row.keys()
    assert {f"testbed/p/{name}" for name in FAMILIES} <= rows(folder)[0].keys()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["families"].keys() == FAMILIES and summary["families"]["tail_10"].keys() == {"start", "end"}
    assert 0.05 < summary["families"]["tail_10"]["start"] < 0.15
    spent = summary["account"]
    assert spent["updates"] == 3 and spent["train_seconds"] == summary["train_seconds"] > 0
    assert spent["verifier_calls"] == 3 * 64 and spent["demonstrations"] == 0
    lengths = [row["completions/mean_length"] * 64 for row in logged]
    assert spent["generated_tokens"] == round(sum(lengths))
    weights = load_file(folder / "model" / "model.safetensors").values()  # tied ones once
    assert spent["parameters"] == sum(weight.numel() for weight in weights)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["beta"] == 0.05 and recipe["max_steps"] == 3 and recipe["estimator"] == "sequence"
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["trl"].startswith("1.16") and versions["git"] and versions["tasks"]
    assert (folder / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("sft", []),
        ("mixture", []),
        ("rl", ["--estimator", "sequence_to_go"]),
        ("rl", ["--use_peft", "true", "--lora_target_modules", "[q_proj, v_proj]"]),
        ("mixture", ["--demonstrations_paired", "true"]),
        ("rl", ["--estimator", "trl", "--beta", "0.1"]),
        ("mixture", ["--estimator", "trl"]),
    ],
)
def test_recipes_train(tmp_path, name, extra, capsys):
    small = {"max_steps": 2, "output_dir": tmp_path / "run", "probe_rows": 4, "prompt_rows": 64}
    words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    folder = launch(str(ROOT / "recipes" / f"{name}.yaml"), [*words, "--demonstration_rows", "256", *extra])
    logged = [row for row in rows(folder) if "loss" in row]
    assert len(logged) == 2
    assert all(math.isfinite(row["free_energy/total"]) for row in logged)
    assert ("free_energy/demonstration" in logged[0]) == (name != "rl")
    assert ("free_energy/kl" in logged[0]) == (name != "sft")
    assert "step 2/2  F " in capsys.readouterr().out


def test_a_run_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RecipeError, match="is not empty"):
        launch(str(ROOT / "recipes" / "sft.yaml"), ["--output_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "{}\n"


def test_the_door_reports_a_bad_recipe_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "scripts/train.py", "--config", "recipes/rl.yaml", "--estimatr", "trl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "estimatr: unknown key; did you mean estimator?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--beta", "-1"], "beta: -1"),
        (["--reward_funcs", "[nonsense]"], "reward_funcs: 'nonsense'"),
        (["--prompts", "{}"], "prompts: missing"),
    ],
)
def test_values_that_make_no_run_are_recipe_errors(tmp_path, extra, message):
    with pytest.raises(RecipeError, match=message):
        launch(str(ROOT / "recipes" / "rl.yaml"), ["--output_dir", str(tmp_path / "run"), *extra])

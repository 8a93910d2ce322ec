"""Recipes that name another base of the testbed: which model is trained, and on which families it is measured."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.data import load
from fe_posttrain.recipe.launch import launch
from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.tasks.bases import BASES
from fe_posttrain.tasks.depths import depths_model
from fe_posttrain.tasks.pretraining_run import PretrainSettings

RECIPE = """
model_name_or_path: testbed_depths
prompts: {depth_2: 1}
prompt_rows: 64
probe_rows: 2
reward_funcs: [digits]
beta: 0.02
max_steps: 1
per_device_train_batch_size: 16
num_generations: 8
max_completion_length: 12
learning_rate: 0.0
use_cpu: true
gradient_checkpointing: false
save_strategy: "no"
report_to: none
"""
DEPTHS = [f"depth_{depth}" for depth in range(1, 6)]


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A stand-in for the base of depths, in its place: one layer, hardly trained."""
    small = PretrainSettings(steps=3, batch_size=8, hidden_size=8, intermediate_size=8, layers=1, heads=2)
    folder = depths_model(tmp_path / "cache", settings=small)
    monkeypatch.setitem(BASES, "testbed_depths", lambda: folder)
    return folder


@pytest.fixture
def recipe(tmp_path) -> str:
    (tmp_path / "recipe.yaml").write_text(RECIPE + f"output_dir: {tmp_path / 'run'}\n")
    return str(tmp_path / "recipe.yaml")


def test_the_base_is_trained_and_its_families_are_measured(recipe, base):
    folder = launch(recipe, [])
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["families"]) == DEPTHS
    trained = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    for name, weight in AutoModelForCausalLM.from_pretrained(base).state_dict().items():
        assert trained[name].equal(weight)  # learning rate 0: what was trained is the base
    card = (folder / "model" / "README.md").read_text()
    assert "the embedded testbed's base of depths" in card and "base_model" not in card


def test_support_is_probed_on_the_families_of_the_base(recipe, base):
    settings, args, _ = resolve(recipe, ["--support", "true"])
    probes = load(settings, args, AutoTokenizer.from_pretrained(base), str(base)).probes
    assert list(dict.fromkeys(probes["family"])) == DEPTHS and len(probes) == 10


def test_a_misspelt_base_is_suggested(recipe):
    with pytest.raises(RecipeError, match=r"did you mean testbed_depths\?"):
        resolve(recipe, ["--model_name_or_path", "testbed_depth"])

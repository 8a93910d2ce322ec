"""Recipes: what is read, what overrides it, and how a mistake is reported."""

from pathlib import Path

import pytest

from fe_posttrain import FreeEnergyConfig
from fe_posttrain.recipe.reading import RecipeError, read_recipe, split
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.training.config import ModelConfig

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
KINDS = (RunSettings, FreeEnergyConfig, ModelConfig)


def write(tmp_path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_numbers_are_numbers_and_overrides_win(tmp_path):
    path = write(tmp_path, "learning_rate: 5e-7\nbeta: 1e1\nname: 1e\nmax_steps: 3\n")
    read = read_recipe(path, ["--max_steps", "7", "--prompts={tail_10: 2}", "--use-cpu", "true"])
    assert read["learning_rate"] == 5e-7 and read["beta"] == 10.0 and read["name"] == "1e"
    assert read["max_steps"] == 7 and read["prompts"] == {"tail_10": 2} and read["use_cpu"] is True


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("- a\n", [], "a recipe is a mapping"),
        ("a: [1\n", [], "not YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", [], "not YAML"),
        ("a: 1\n", ["--a"], "--a: no value"),
        ("a: 1\n", ["b", "2"], "'b': not a key"),
    ],
)
def test_mistakes_say_what_to_write(tmp_path, text, overrides, message):
    with pytest.raises(RecipeError, match=message):
        read_recipe(write(tmp_path, text), overrides)


def test_a_missing_recipe_is_named():
    with pytest.raises(RecipeError, match=r"nowhere\.yaml; No such file"):
        read_recipe("nowhere.yaml", [])


def test_unknown_keys_are_reported_together_with_the_nearest_known_one():
    with pytest.raises(RecipeError) as error:
        split({"learning_rat": 1, "num_generation": 2, "beta": 0.1}, KINDS)
    assert "learning_rat: unknown key; did you mean learning_rate?" in str(error.value)
    assert "num_generation: unknown key; did you mean num_generations?" in str(error.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_one_that_the_configuration_accepts(path, tmp_path):
    run, config, model = split(read_recipe(path, []), KINDS)
    assert "output_dir" not in config  # every run gets a folder of its own
    args = FreeEnergyConfig(output_dir=str(tmp_path), **config)
    settings, _ = RunSettings(**run), ModelConfig(**model)
    assert bool(settings.demonstrations) == bool(args.demonstration_energy_weight)
    assert bool(settings.prompts) == args.generates
    header = path.read_text().split("\n\n")[0]
    assert f"--config recipes/{path.name}" in header and "Expected:" in header


def test_there_are_recipes_for_each_way_to_descend():
    assert {"quickstart", "rl", "sft", "mixture"} <= {path.stem for path in RECIPES}

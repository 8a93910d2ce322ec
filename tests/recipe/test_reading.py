"""Recipes as files: what is read, where it stands, what overrides it, and files that are no recipes."""

from pathlib import Path

import pytest

from fe_posttrain.recipe import combinations
from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.reading import RecipeError, read_recipe
from fe_posttrain.training import named

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def write(tmp_path, text: str | bytes) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_numbers_are_numbers_and_overrides_win(tmp_path):
    path = write(tmp_path, "learning_rate: 5e-7\nbeta: 1e1\nname: 1e\nmax_steps: 3\n")
    recipe = read_recipe(path, ["--max_steps", "7", "--prompts={tail_10: 2}", "--use-cpu", "true", "--x", "-1"])
    assert recipe.values == {
        "learning_rate": 5e-7,
        "beta": 10.0,
        "name": "1e",
        "max_steps": 7,
        "prompts": {"tail_10": 2},
        "use_cpu": True,
        "x": -1,
    }
    places = [recipe.place(key).text for key in ("beta", "max_steps", "use_cpu")]
    assert places == [f"{path}:2", "--max_steps", "--use_cpu"] and not recipe.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("On", "On"),
        ("true", True),
        ("010", "010"),
        ("1:30", "1:30"),
        ("1_000", 1000),
        ("2024-01-01", "2024-01-01"),
        ("1.", 1.0),
        (".5e+3", 500.0),
        ("-.inf", float("-inf")),
        ("0x10", 16),
        ("", None),
        ("~", None),
        ("None", "None"),
    ],
)
def test_plain_words_are_what_yaml_1_2_says(text, value, tmp_path):
    (found,) = read_recipe(write(tmp_path, f"a: {text}\n"), []).values.values()
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", ":1: a list; a recipe is a mapping"),
        ("word\n", ":1: a single value; a recipe is a mapping"),
        ("", ": it is empty"),
        ("# only a remark\n", ": it is empty"),
        ("a: 1\nb: [1\nc: 2\n", ":3: while parsing a flow sequence"),
        ("a: 1\nb: [1\n", ":2: while parsing a flow sequence"),
        ("a:\n\tb: 1\n", ":2: a tab where YAML wants spaces"),
        ("a: 1\n---\nb: 2\n", ":1: expected a single document"),
        ("a: &x 1\nb: *x\n", ":2: an alias"),
        ("a: " + "[" * 3000, ":1: nested too deeply"),
        (b"a: \xff\n", ": not text in UTF-8"),
        (b"a: 1\nb: \x00\n", ":2: the character number 0"),
    ],
)
def test_what_is_no_recipe_is_one_line(text, message, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as error:
        read_recipe(path, [])
    assert str(error.value).startswith(f"{path}{message}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", [], "recipe.yaml:3: a: it stands in line 1 and in line 3;"),
        ("a: {b: 1, b: 2}\n", [], "recipe.yaml:1: a: 'b' stands twice in it;"),
        ("a: !!python/object/apply:os.system ['true']\n", [], "recipe.yaml:1: a: the tag !!python/object/apply:os.sys"),
        ("a: !!binary aGk=\n", [], "recipe.yaml:1: a: the tag !!binary"),
        ("a: 1\n3: x\n", [], "recipe.yaml:2: the key 3 is no text;"),
        ("a: 1\n[b]: x\n", [], "recipe.yaml:2: the key a list or mapping is no text;"),
        ("a: 1\n", ["--a"], "--a: no value;"),
        ("a: 1\n", ["--use_cpu", "--b", "1"], "--use_cpu: no value; overrides come in pairs, true and false"),
        ("a: 1\n", ["b"], "'b': not a key;"),
        ("a: 1\n", ["--a", "{"], "--a: "),
    ],
)
def test_mistakes_in_one_entry_leave_the_others_readable(text, overrides, message, tmp_path):
    (problem,) = read_recipe(write(tmp_path, text), overrides).problems
    assert message in str(problem)


@pytest.mark.parametrize(("path", "what"), [("nowhere.yaml", "No such file"), ("recipes", "Is a directory")])
def test_a_missing_recipe_is_named(path, what):
    with pytest.raises(RecipeError, match=f"--config: .*{path}; {what}"):
        read_recipe(ROOT / path, [])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_every_recipe_is_one_that_the_configuration_accepts(path, tmp_path, monkeypatch):
    values = read_recipe(path, []).values
    assert "output_dir" not in values  # every run gets a folder of its own
    for module in (combinations, named):
        monkeypatch.setattr(module, "find_spec", lambda package: object())  # as if vllm and the like were installed
    here = ["--use_cpu", "true", "--output_dir", str(tmp_path)]  # bf16 needs a GPU, or this
    if path.stem == "chain_sum":  # what scripts/chain_sum.py makes
        here += ["--model_name_or_path", "testbed", "--dataset_name", str(ROOT / "recipes" / "own" / "prompts.jsonl")]
        here += ["--eval_dataset_name", "null", "--eval_strategy", '"no"'] if "eval_dataset_name" in values else []
    resolve(path, here)
    header = path.read_text().split("\n\n")[0]
    assert f"--config {path.relative_to(ROOT)}" in header and "Expected:" in header


def test_there_are_recipes_for_each_way_to_descend():
    assert {"quickstart", "rl", "sft", "mixture"} <= {path.stem for path in RECIPES}

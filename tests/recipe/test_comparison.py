"""The YAML of a comparison: every mistake with its line and what to write; the words that launch a run."""

from pathlib import Path

import pytest
import yaml

from fe_posttrain.recipe.comparison import read_comparison, written
from fe_posttrain.recipe.reading import RecipeError, read_recipe

ROOT = Path(__file__).parents[2]
GOOD = {
    "name": "fair",
    "seeds": [0, 1],
    "base": str(ROOT / "recipes" / "rl.yaml"),
    "settings": {"max_steps": 10, "beta": 0.1},
    "arms": {
        "once": {"settings": {"learning_rate": 1e-3}, "role": "control"},
        "rl": None,
        "demos": {"recipe": str(ROOT / "recipes" / "mixture.yaml"), "settings": {"beta": 0.2}},
    },
    "budget": 64,
}


def file(path: Path, **changed) -> str:
    """The good comparison with keys changed; those that are `...` left out."""
    content = {key: value for key, value in (GOOD | changed).items() if value is not ...}
    (path / "c.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path / "c.yaml")


def problems(path: str, with_recipes: bool = False) -> list[str]:
    with pytest.raises(RecipeError) as error:
        read_comparison(path, with_recipes=with_recipes)
    return str(error.value).replace(f"{path}:", "").replace(path, "").splitlines()


def test_arms_get_common_settings_their_own_and_what_tells_runs_apart(tmp_path):
    found = read_comparison(file(tmp_path), with_recipes=True)
    assert (found.baseline, found.match, found.launch) == ("once", ("generated", "kl"), ("accelerate", "launch"))
    assert [arm.role for arm in found.arms] == ["control", "method", "method"]
    runs = found.runs("out")
    assert [run.folder for run in runs] == [f"out/{a}/seed-{s}" for s in (0, 1) for a in ("once", "rl", "demos")]
    assert runs[5].settings == {
        "max_steps": 10,
        "beta": 0.2,
        "support_budget": 64,
        "seed": 1,
        "run_name": "demos-seed-1",
        "wandb_run_group": "fair",
        "wandb_job_type": "demos",
    }
    assert runs[5].words[:4] == ["--config", GOOD["arms"]["demos"]["recipe"], "--output_dir", "out/demos/seed-1"]


@pytest.mark.parametrize(
    "value",
    [0, 0.05, 1e-7, True, None, "linear", "true", "010", "1e-4", "", "a: b", "[x", "--beta", "two\nlines", "ü",
     ["a", 1], {"tail_10": 1, "basin": 0.5}, {"a": {"b": [None, "no"]}}],
)  # fmt: skip
def test_a_value_is_read_back_as_it_was(value):
    path = str(ROOT / "recipes" / "rl.yaml")
    recipe = read_recipe(path, ["--key", written(value)])
    assert recipe.values["key"] == value and type(recipe.values["key"]) is type(value)
    assert recipe.problems == []


ARMS = GOOD["arms"]
TUNED = {"tune": {"learning_rate": [1e-3, 1e-2]}, "tuning_seed": 9}
MISTAKES = {
    "no name": ({"name": ...}, "name: missing", "write letters"),
    "a name with a slash": ({"name": "a/b"}, "1: name: 'a/b'", "write letters"),
    "no seeds": ({"seeds": ...}, "seeds: missing", "write seeds: [0, 1, 2]"),
    "a seed twice": ({"seeds": [1, 1]}, "2: seeds: [1, 1]", "write seeds: [0, 1, 2]"),
    "seeds that are none": ({"seeds": [True, -1]}, "2: seeds: [True, -1]", "write seeds: [0, 1, 2]"),
    "no base": ({"base": ...}, "once: no recipe", "write base: RECIPE.yaml"),
    "a base that is not there": ({"base": "nope.yaml"}, "5: base: nope.yaml", "write the path of a recipe"),
    "one arm": ({"arms": {"rl": {}}}, ": arms: fewer than two", "write arms: {rl: {}, sft: {...}}"),
    "a label that is no name": ({"arms": ARMS | {"a b": {}}}, ": a b: the label names a folder", "write letters"),
    "an arm that is text": ({"arms": ARMS | {"x": "rl"}}, ": x: 'rl'", "write x: {settings: {...}}"),
    "a mistyped key": ({"seed": 1}, ": seed: unknown key", "did you mean seeds?"),
    "a key of a recipe": ({"arms": ARMS | {"x": {"beta": 1}}}, ": x.beta: unknown key", "keys of a recipe go into"),
    "an unknown role": ({"arms": ARMS | {"x": {"role": "ctrl"}}}, ": x.role: 'ctrl'", "write one of them"),
    "a seed in an arm": ({"arms": ARMS | {"x": {"settings": {"seed": 1}}}}, ": x.settings.seed: set", "remove it"),
    "a folder for all": ({"settings": {"output_dir": "x"}}, ": settings.output_dir: set", "remove it"),
    "B in an arm": ({"settings": {"support_budget": 4}}, ": settings.support_budget: verdicts", "write budget:"),
    "settings that are a list": ({"settings": [1]}, ": settings: [1]", "write settings: {learning_rate: 1e-4}"),
    "a baseline that is no arm": ({"baseline": "sft"}, ": baseline: 'sft'; not one of once, rl", "write one of"),
    "an unknown match": ({"match": ["kl", "time"]}, ": match: ['kl', 'time']", "write match: [generated, kl]"),
    "B of nothing": ({"budget": 0}, ": budget: 0", "write budget: 1024"),
    "trials that are no keys": ({"tune": [1]}, ": tune: [1]", "write tune: {learning_rate: [3e-4, 1e-3]}"),
    "a single trial": ({"tune": {"beta": [1]}, "tuning_seed": 9}, ": tune.beta: [1]", "write beta: [A, B]"),
    "trials of the seed": (TUNED | {"tune": {"seed": [1, 2]}}, ": tune.seed: set for every run", "remove it"),
    "tuned and set for all": (TUNED | {"tune": {"beta": [1, 2]}}, ": settings.beta: tuned as well", "remove it here"),
    "no seed of trials": (TUNED | {"tuning_seed": ...}, ": tuning_seed: missing", "write tuning_seed: 100"),
    "a compared seed": (TUNED | {"tuning_seed": 1}, ": tuning_seed: 1; trials on a seed", "write tuning_seed: 100"),
    "a seed of no trials": ({"tuning_seed": 9}, ": tuning_seed: nothing is tuned", "write tune, or remove it"),
    "no launcher": ({"launch": ["a"]}, ": launch: ['a']", "write launch: accelerate launch"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_with_place_and_remedy(tmp_path, name):
    changed, what, remedy = MISTAKES[name]
    found = problems(file(tmp_path, **changed))
    assert any(what in f":{line}" and remedy in line for line in found), found


def test_mistakes_of_every_arm_come_in_one_list_with_those_of_the_file(tmp_path):
    arms = {"a": {"settings": {"learning_rat": 1}}, "b": {"settings": {"beta": "x"}}, "c": {"rol": "method"}}
    found = problems(file(tmp_path, arms=arms, settings={"support": False}), with_recipes=True)
    assert sum("support: not true in arm" in line for line in found) == 3
    for words in ("learning_rat: unknown key; did you mean learning_rate?", "beta: 'x' is text", "c.rol: unknown key"):
        (line,) = (line for line in found if words in line)
        key = words.split(":")[0].split(".")[-1]
        number = 1 + next(
            i for i, text in enumerate((tmp_path / "c.yaml").read_text().splitlines()) if f"{key}:" in text
        )
        assert line.startswith(f"{number}:")


COME_ALONG = [path for path in sorted((ROOT / "recipes/comparisons").glob("*.yaml")) if "\narms:" in path.read_text()]


@pytest.mark.parametrize("path", COME_ALONG, ids=lambda path: path.name)
def test_those_that_come_along_can_be_run(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert read_comparison(str(path), with_recipes=True).name == path.stem


def test_every_arm_has_the_same_trials_but_one_that_writes_the_key(tmp_path):
    tune = {"learning_rate": [1e-3, 1e-2], "max_grad_norm": [1.0, 2.0]}
    found = read_comparison(file(tmp_path, tune=tune, tuning_seed=9), with_recipes=True).trials("out")
    assert [run.folder for run in found[:2]] == ["out/once/trial-1", "out/once/trial-2"]
    tried = [(run.settings["learning_rate"], run.settings["max_grad_norm"]) for run in found]
    every = [(1e-3, 1.0), (1e-3, 2.0), (1e-2, 1.0), (1e-2, 2.0)]
    assert tried == [(1e-3, 1.0), (1e-3, 2.0), *every, *every]  # once writes a learning rate of 1e-3
    assert {run.seed for run in found} == {run.settings["seed"] for run in found} == {9}
    assert (found[0].name, found[0].settings["run_name"]) == ("once trial 1", "once-trial-1")


def test_a_value_that_cannot_be_run_is_told_at_the_line_of_its_key(tmp_path):
    found = problems(file(tmp_path, tune={"learning_rate": [1e-3, -1]}, tuning_seed=9), with_recipes=True)
    assert found and all("learning_rate" in line for line in found)
    lines = (tmp_path / "c.yaml").read_text().splitlines()
    number = 1 + max(i for i, text in enumerate(lines) if "learning_rate" in text)
    assert len(found) == 1 and found[0].startswith(f"{number}:")


def test_an_arm_may_be_a_method_by_name(tmp_path):
    arms = {"a": {"settings": {"method": "sft"}}, "b": {"settings": {"method": "no_such"}}}
    base = str(ROOT / "recipes" / "mixture.yaml")
    found = problems(file(tmp_path, arms=arms, base=base, settings={"max_steps": 3}), with_recipes=True)
    assert [line for line in found if "method" in line and "no_such" in line]
    assert not [line for line in found if "unknown key" in line]


def test_a_file_that_is_no_comparison(tmp_path):
    assert "No such file" in problems(str(tmp_path / "none.yaml"))[0]
    (tmp_path / "list.yaml").write_text("- a\n")
    assert "a list" in problems(str(tmp_path / "list.yaml"))[0]

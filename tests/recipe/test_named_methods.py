"""Named methods where a person meets them: their recipes, the table of recipes/README.md, and `method:` in a recipe."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fe_posttrain.methods.presets import METHODS
from fe_posttrain.methods.table import filled
from fe_posttrain.recipe.checks import resolve
from fe_posttrain.recipe.reading import RecipeError

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "methods"
README = ROOT / "recipes" / "README.md"


def header(name: str) -> list[str]:
    """The lines of a recipe's first comment, without `# `."""
    lines = (RECIPES / f"{name}.yaml").read_text().split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return [line[2:] for line in lines]


def listed_departures(name: str) -> list[str]:
    """The items of the header's list of departures, each on one line."""
    paragraphs = "\n".join(header(name)).split("\n\n")
    found = [text for text in paragraphs if text.startswith("Departures from the paper:\n")]
    assert len(found) < 2
    items = found[0].split("\n- ")[1:] if found else []
    return [" ".join(item.split()) for item in items]


def table_rows(text: str) -> dict[str, list[str]]:
    """name -> the other cells of its row."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| `\w+`: ", line)]
    return {re.match(r"`(\w+)`", cells[0])[1]: cells[1:] for cells in rows}


def written(tmp_path: Path, name: str, *lines: str) -> Path:
    """The recipe of a method with `lines` after it."""
    path = tmp_path / "r.yaml"
    path.write_text((RECIPES / f"{name}.yaml").read_text() + "\n".join(lines) + "\n")
    return path


def teacher(name: str) -> list[str]:
    """A teacher that is there, for the one recipe that names a model which its header makes first."""
    return ["--reference_model_name_or_path", "testbed"] if "reference_model_name_or_path" in METHODS[name].asks else []


def test_every_method_has_a_recipe_and_every_recipe_a_method():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_header_has_the_launch_line_what_to_expect_and_exactly_the_departures_of_the_preset(name):
    assert f"  accelerate launch scripts/train.py --config recipes/methods/{name}.yaml" in header(name)
    assert sum(line.startswith("Expected: ") for line in header(name)) == 1
    assert listed_departures(name) == list(METHODS[name].departures)


@pytest.mark.parametrize("name", METHODS)
def test_a_recipe_resolves_to_the_keys_of_its_method_less_those_it_writes(name):
    path = RECIPES / f"{name}.yaml"
    settings, args, model = resolve(path, teacher(name))
    assert settings.method == name and model.model_name_or_path == "testbed"
    own = yaml.safe_load(path.read_text())
    in_force = {key: getattr(args, key) for key in METHODS[name].settings}
    assert in_force == {key: own.get(key, value) for key, value in METHODS[name].settings.items()}


def test_what_a_recipe_or_the_command_line_writes_wins_over_the_method(tmp_path):
    path = written(tmp_path, "luffy", "demonstration_energy_weight: 0.3", "gate: unsolved")
    _, args, _ = resolve(path, ["--reward_energy_weight", "0.5"])
    assert (args.reward_energy_weight, args.demonstration_energy_weight, args.gate) == (0.5, 0.3, "unsolved")
    assert args.num_generations == 7 and args.demonstration_shaping == {"shrinking": {"gamma": 0.1}}


def test_a_method_of_the_command_line_takes_the_place_of_the_recipes(tmp_path):
    _, args, _ = resolve(RECIPES / "rl.yaml", ["--method", "dr_grpo"])
    assert args.beta == 0
    _, args, _ = resolve(RECIPES / "rl.yaml", [])
    assert args.beta == 0.05


def test_an_unknown_method_is_told_which_may_be_meant():
    with pytest.raises(RecipeError) as error:
        resolve(RECIPES / "rl.yaml", ["--method", "dr_grop"])
    (line,) = str(error.value).splitlines()
    assert line.startswith("--method: ") and "did you mean dr_grpo?" in line


def test_a_method_that_lacks_what_it_asks_for_says_so_once_at_its_line(tmp_path):
    lines = (RECIPES / "distillation.yaml").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("reference_model_name_or_path:")]
    path = tmp_path / "r.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(RecipeError) as error:
        resolve(path, [])
    (problem,) = str(error.value).splitlines()
    place = lines.index("method: distillation") + 1
    assert problem.startswith(f"{path}:{place}: method: distillation without reference_model_name_or_path; ")
    assert problem.endswith("write reference_model_name_or_path too")


def test_the_table_has_a_row_for_each_method():
    rows = table_rows(README.read_text())
    assert list(rows) == list(METHODS)
    assert rows["hpt"] == [
        "[2509.04419](https://arxiv.org/abs/2509.04419)",
        "1",
        "1",
        "0",
        "`gate: {threshold: {solved_at_most: 0}}`",
        "one with each prompt",
        "2",
    ]
    assert rows["sft_then_rl"][1:4] == [
        "0, switch: final 1, until 0.5",
        "1, switch: final 0, until 0.5",
        "0, switch: final 0.02, until 0.5",
    ]
    assert rows["distillation"][4] == "asks for `reference_model_name_or_path`"


def test_the_readme_is_up_to_date_and_an_old_table_is_found_and_mended():
    command = [sys.executable, "scripts/methods.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    text = README.read_text()
    old = text.replace("`hpt`: HPT", "`hpt`: another")
    assert old != text and filled(old) == text


def test_the_study_claims_something_of_each_method():
    found = (ROOT / "scripts" / "studies" / "methods.py").read_text()
    assert {name for name in METHODS if f'"{name}"' in found} == METHODS.keys()

"""The JSON schema of a recipe says what the checks say, and is printed by the door."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fe_posttrain.recipe.checks import FIELDS
from fe_posttrain.recipe.names import REFUSED
from fe_posttrain.recipe.schema import schema

ROOT = Path(__file__).parents[2]
PROPERTIES = schema()["properties"]


def test_every_key_is_described_and_nothing_else_is_allowed():
    assert schema()["additionalProperties"] is False and schema()["$schema"].endswith("2020-12/schema")
    assert set(PROPERTIES) == set(FIELDS) and not set(PROPERTIES) & set(REFUSED)
    assert all(entry["description"] and "default" in entry for entry in PROPERTIES.values())


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("beta", {"type": "number", "minimum": 0, "default": 0.0}),
        ("temperature", {"type": "number", "exclusiveMinimum": 0, "default": 1.0}),
        ("top_p", {"exclusiveMinimum": 0, "maximum": 1}),
        ("lora_dropout", {"minimum": 0, "exclusiveMaximum": 1}),
        ("max_steps", {"type": "integer", "anyOf": [{"minimum": 1}, {"enum": [-1]}]}),
        ("use_cpu", {"type": "boolean", "default": False}),
        ("estimator", {"enum": ["sequence", "sequence_to_go", "trl"], "default": "sequence"}),
        ("save_strategy", {"enum": ["no", "steps", "epoch", "best"], "default": "steps"}),
        ("learning_rate", {"anyOf": [{"type": "number"}, {"type": "null"}], "minimum": 0}),
        ("dtype", {"enum": ["auto", "bfloat16", "float16", "float32", None]}),
    ],
)
def test_types_ranges_and_choices_are_those_of_the_checks(key, part):
    assert {name: PROPERTIES[key].get(name) for name in part} == part


def test_the_keys_of_every_recipe_are_in_it():
    for path in (ROOT / "recipes").glob("*.yaml"):
        assert set(yaml.safe_load(path.read_text())) <= set(PROPERTIES)


def test_it_is_json_and_the_help_that_names_it_fits_a_screen():
    command = [sys.executable, "scripts/train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) <= 24 and "--schema" in done.stdout
    assert json.loads(json.dumps(schema())) == schema()

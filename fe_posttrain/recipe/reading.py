"""Read a recipe: flat YAML, the names of TRL and transformers plus ours, overridden by `--key value`."""

import dataclasses
import difflib
import re
from pathlib import Path
from typing import Any

import yaml


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says what, where and what to write. No traceback is needed."""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which `5e-7` is a number, as YAML 1.2 has it and PyYAML does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_recipe(path: str | Path, overrides: list[str]) -> dict[str, Any]:
    """The flat mapping of a recipe file with `--key value` pairs laid over it.

    Raises:
        RecipeError: no such file, not a flat mapping, or words that are no `--key value`.
    """
    try:
        values = yaml.load(Path(path).read_text(), Loader=_Loader) or {}
    except OSError as error:
        raise RecipeError(f"--config: {path}; {error.strerror}; write the path of a recipe") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML; {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a {type(values).__name__}; a recipe is a mapping; write `key: value` lines")
    words = list(overrides)
    while words:
        flag = words.pop(0)
        if not flag.startswith("--"):
            raise RecipeError(f"{flag!r}: not a key; overrides come in pairs; write --key value")
        key, equals, text = flag[2:].partition("=")
        if not equals:
            if not words:
                raise RecipeError(f"--{key}: no value; overrides come in pairs; write --{key} VALUE")
            text = words.pop(0)
        values[key.replace("-", "_")] = yaml.load(text, Loader=_Loader)
    return values


def split(values: dict[str, Any], kinds: tuple[type, ...]) -> list[dict[str, Any]]:
    """Deal the keys of a recipe to the dataclasses that know them; the first one that does takes a key.

    Raises:
        RecipeError: keys that nobody knows, all at once, each with the nearest known one.
    """
    known = [{f.name for f in dataclasses.fields(kind) if f.init} for kind in kinds]
    every = sorted(set().union(*known))
    unknown = [key for key in values if key not in every]
    if unknown:
        raise RecipeError("\n".join(f"{key}: unknown key; {_suggestion(key, every)}" for key in unknown))
    dealt: list[dict[str, Any]] = [{} for _ in kinds]
    for key, value in values.items():
        dealt[next(i for i, names in enumerate(known) if key in names)][key] = value
    return dealt


def _suggestion(key: str, every: list[str]) -> str:
    near = difflib.get_close_matches(key, every, n=1)
    return f"did you mean {near[0]}?" if near else "the keys are those of FreeEnergyConfig, ModelConfig, RunSettings"

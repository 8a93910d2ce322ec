"""Resolve a recipe: every problem of it in one error, or the three dataclasses of a run."""

import dataclasses
import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

from fe_posttrain.recipe.combinations import contradictions
from fe_posttrain.recipe.kinds import misfit
from fe_posttrain.recipe.method import expand
from fe_posttrain.recipe.names import REFUSED, suggestion
from fe_posttrain.recipe.reading import Problem, Recipe, raise_all, read_recipe
from fe_posttrain.recipe.settings import RunSettings
from fe_posttrain.recipe.sources import not_found
from fe_posttrain.training.config import FreeEnergyConfig, ModelConfig
from fe_posttrain.training.conflicts import problems as conflicts
from fe_posttrain.training.limits import limits, out_of_limits

_NOT_NULL = ("num_generations", "max_completion_length")  # TRL annotates them as optional and computes with them
KINDS = (RunSettings, FreeEnergyConfig, ModelConfig)


def resolve(path: str | Path, overrides: list[str]) -> tuple[RunSettings, FreeEnergyConfig, ModelConfig]:
    """The settings of the recipe at `path` with `--key value` overrides; neither model nor data are loaded.

    `output_dir` is `runs/RECIPE-TIME` where the recipe leaves it open.

    Raises:
        RecipeError: every problem of the recipe, a line each: `recipes/x.yaml:12: key: what; why; what to write`.
    """
    recipe = read_recipe(path, overrides)
    raise_all(problems_of(recipe))
    return _build(recipe)


def problems_of(recipe: Recipe) -> list[Problem]:
    """Every problem that can be told without what TRL and this machine say to the finished dataclasses.

    Where the recipe names a method, `recipe` has its keys afterwards.
    """
    lacking = expand(recipe)
    unread = [problem for problem in recipe.problems if problem.key not in recipe.values]
    problems = [*_keys(recipe), *_types(recipe)]
    faulty = {problem.key for problem in (*unread, *problems)}
    return [*recipe.problems, *lacking, *problems, *_values(recipe, faulty)]


def _fields() -> dict[str, tuple[type, dataclasses.Field, Any]]:
    """Key -> the first dataclass that has it, its field and its type."""
    found: dict[str, tuple] = {}
    for kind in KINDS:
        hints = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            hint = int if field.name in _NOT_NULL else hints[field.name]
            found.setdefault(field.name, (kind, field, hint))
    return {name: entry for name, entry in found.items() if name not in REFUSED}


FIELDS = _fields()


def _keys(recipe: Recipe) -> list[Problem]:
    """Keys that no recipe may hold, and keys that nobody knows."""
    found = []
    for key in recipe.places:
        if key in REFUSED:
            found.append(Problem(recipe.place(key), key, REFUSED[key]))
        elif key not in FIELDS:
            near = suggestion(key, FIELDS)
            wanted = f"did you mean {near}?" if near else "scripts/train.py --schema lists the known ones; remove it"
            found.append(Problem(recipe.place(key), key, f"unknown key; {wanted}"))
    return found


def _types(recipe: Recipe) -> list[Problem]:
    found = []
    for key, value in recipe.values.items():
        if key in FIELDS:
            kind, field, hint = FIELDS[key]
            if text := misfit(field, hint, value, limits(kind)[1].get(key, ())):
                found.append(Problem(recipe.place(key), key, text))
    return found


def _values(recipe: Recipe, faulty: set[str]) -> list[Problem]:
    """Ranges and choices, files and names, contradictions; of what is `faulty` already, the default is used."""
    values = {key: value for key, value in recipe.values.items() if key in FIELDS and key not in faulty}
    found = [
        Problem(recipe.place(key), key, text)
        for kind in KINDS
        for key, text in out_of_limits(kind, {key: v for key, v in values.items() if FIELDS[key][0] is kind})
    ]
    faulty = faulty | {problem.key for problem in found}
    if "method" in faulty:  # most keys are not known yet
        return found
    values = {key: value for key, value in values.items() if key not in faulty}
    config = _draft(values)
    asked = ("generates", "uses_reward", "uses_demonstrations", "reads_demonstrations")
    known = {name: getattr(config, name) for name in asked}
    run = SimpleNamespace(**_defaults() | values | known, written=set(values), faulty=faulty)
    found += [Problem(recipe.place(key), key, text) for key, text in not_found(run) if key not in faulty]
    meant = {suggestion(key, FIELDS) for key in faulty}  # `prompt:` is not "no prompts" as well
    run.faulty = faulty | meant | {problem.key for problem in found}
    for keys, text in contradictions(run):
        key = next((key for key in keys if key in recipe.places), keys[0])
        found.append(Problem(recipe.place(*keys), key, text))
    for line in conflicts(config):
        key, text = line.split(": ", 1)
        keys = [key, *_named(text)]
        if not run.faulty.intersection(keys):
            found.append(Problem(recipe.place(*keys), key, text))
    return found


def _named(text: str) -> list[str]:
    """The keys that a message mentions, in its order."""
    return [word for word in re.findall(r"\w+", text) if word in FIELDS]


def _defaults() -> dict[str, Any]:
    return {
        name: field.default if field.default is not dataclasses.MISSING else field.default_factory()
        for name, (_, field, _) in FIELDS.items()
    }


def _draft(values: dict[str, Any]) -> FreeEnergyConfig:
    """A FreeEnergyConfig as it is before its constructor has looked at it."""
    config = object.__new__(FreeEnergyConfig)
    own = {name for name, (kind, _, _) in FIELDS.items() if kind is FreeEnergyConfig}
    vars(config).update({name: value for name, value in (_defaults() | values).items() if name in own})
    return config


def _build(recipe: Recipe) -> tuple[RunSettings, FreeEnergyConfig, ModelConfig]:
    """The dataclasses themselves; what only the constructors of TRL and transformers find is reported last."""
    given: dict[type, dict[str, Any]] = {kind: {} for kind in KINDS}
    for key, value in recipe.values.items():
        given[FIELDS[key][0]][key] = value
    if not given[FreeEnergyConfig].get("output_dir"):
        given[FreeEnergyConfig]["output_dir"] = f"runs/{Path(recipe.path).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    built, problems = [], []
    for kind in KINDS:
        try:
            built.append(kind(**given[kind]))
        except (ValueError, TypeError, NotImplementedError, OSError) as error:
            text = " ".join(str(error).split())
            words = _named(text)
            key = next((word for word in words if word in recipe.places), words[0] if words else "recipe")
            change = f"change {key}" if words else "change what it names"
            problems.append(Problem(recipe.place(key), key, f"{text}; {kind.__name__} refuses it; {change}"))
    raise_all(problems)
    return tuple(built)

"""The YAML of a comparison: arms x seeds from one base recipe, every problem of it in one error.

    name: projections                  what the runs are called together; wandb's group
    seeds: [0, 1, 2]                   every arm is run with each
    base: recipes/rl.yaml              the recipe that arms have in common
    settings: {max_steps: 100}         keys of a recipe, laid over it in every arm
    arms:
      rejection:                       a label; the name of its folder and wandb's job type
        recipe: recipes/sft.yaml       in the place of base
        settings: {learning_rate: 1e-3}
        role: control                  method (default), control, negative, positive or base
    baseline: rejection                the arm that each other one is compared with; default the first
    match: [generated, kl]             what is to be equal in a comparison
    budget: 1024                       B of every verdict; default each run's own
    tune: {learning_rate: [3e-4, 1e-3]}   every arm first tries each value, and is run with the one of best pass@1
    tuning_seed: 100                   seed of the trials; none of seeds. An arm that writes a tuned key keeps it
    launch: accelerate launch          the words before scripts/train.py

Paths are relative to where the command is given, as those of a recipe.
"""

import difflib
import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from fe_posttrain.recipe.loader import Loader, parse
from fe_posttrain.recipe.reading import Place, Problem, Recipe, RecipeError, raise_all, read_recipe

ROLES = ("method", "control", "negative", "positive", "base")
MATCHES = ("generated", "kl")
KEYS = ("name", "seeds", "base", "settings", "arms", "baseline", "match", "budget", "tune", "tuning_seed", "launch")
ARM_KEYS = ("recipe", "settings", "role")
SET_HERE = ("output_dir", "seed", "run_name", "wandb_run_group", "wandb_job_type")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_AFTER_FILE = 100_000  # order of places: lines of the arm's recipe come before those of the comparison


@dataclass(frozen=True)
class Arm:
    """An arm: its recipe, and the settings laid over it (the common ones and its own)."""

    label: str
    recipe: str
    settings: dict[str, Any] = field(default_factory=dict)
    role: str = ROLES[0]


@dataclass(frozen=True)
class Run:
    """An arm with a seed: its folder below that of the comparison, and what is laid over the arm's recipe."""

    arm: Arm
    seed: int
    folder: str
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.arm.label} {Path(self.folder).name.replace('-', ' ')}"

    @property
    def words(self) -> list[str]:
        """The arguments of scripts/train.py, beside --resume."""
        laid_over = [word for key, value in self.settings.items() for word in (f"--{key}", written(value))]
        return ["--config", self.arm.recipe, "--output_dir", self.folder, *laid_over]


@dataclass(frozen=True)
class Comparison:
    """A comparison as its file says, defaults filled in."""

    name: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    baseline: str
    match: tuple[str, ...] = MATCHES
    budget: int | None = None
    tune: Mapping[str, tuple] = field(default_factory=dict)
    tuning_seed: int | None = None
    launch: tuple[str, ...] = ("accelerate", "launch")

    def runs(self, output_dir: str) -> list[Run]:
        """Every arm with every seed; seed by seed, so that a comparison that is cut short still has pairs."""
        return [self._run(arm, seed, output_dir, f"seed-{seed}") for seed in self.seeds for arm in self.arms]

    def trials(self, output_dir: str) -> list[Run]:
        """Every arm with every combination of tuned values, numbered from 1."""
        return [
            self._run(replace(arm, settings=arm.settings | tried), self.tuning_seed, output_dir, f"trial-{number}")
            for arm in self.arms
            for number, tried in enumerate(tried_by(arm, self.tune), 1)
        ]

    def _run(self, arm: Arm, seed: int, output_dir: str, name: str) -> Run:
        budget = {} if self.budget is None else {"support_budget": self.budget}
        told = {
            "seed": seed,
            "run_name": f"{arm.label}-{name}",
            "wandb_run_group": self.name,
            "wandb_job_type": arm.label,
        }
        return Run(arm, seed, f"{output_dir}/{arm.label}/{name}", arm.settings | budget | told)


def tried_by(arm: Arm, tune: Mapping[str, tuple]) -> list[dict[str, Any]]:
    """Combinations of tuned values that an arm tries, of the keys that it does not write itself; none: no trials."""
    tuned = {key: values for key, values in tune.items() if key not in arm.settings}
    return [dict(zip(tuned, values, strict=True)) for values in itertools.product(*tuned.values())] if tuned else []


def written(value: Any) -> str:
    """A value as a word after `--key`: what a recipe reads back as the same value."""
    if isinstance(value, str) and value.isprintable() and not value.startswith("--"):
        try:
            if parse(value) == value:
                return value
        except yaml.YAMLError:
            pass  # text that YAML takes for something else goes in quotes
    return json.dumps(value, ensure_ascii=False)


def read_comparison(path: str, *, with_recipes: bool) -> Comparison:
    """The comparison at `path`.

    Args:
        with_recipes: check what every arm would run too, as scripts/train.py does (imports torch).

    Raises:
        RecipeError: every problem, a line each: `file.yaml:12: key: what; why; what to write`.
    """
    return _Reading(path).comparison(with_recipes)


def _of_recipe(arm: Arm, path: str, lines: Mapping[tuple[str, ...], int]) -> list[Problem]:
    """Problems of what an arm would run, with their line in its recipe or in the comparison at `path`."""
    from fe_posttrain.recipe.checks import problems_of

    recipe = read_recipe(arm.recipe, [])
    for key, value in arm.settings.items():
        own = lines.get(("arms", arm.label, "settings", key))
        line = own or lines.get(("settings", key)) or lines.get(("tune", key), 0)
        recipe.values[key] = value
        recipe.places[key] = Place(_AFTER_FILE + line, f"{path}:{line}")
    if recipe.values.get("support") is not True:
        line = lines["arms", arm.label]
        text = f"not true in arm {arm.label}; results rest on its probes; write support: true in settings"
        recipe.problems.append(Problem(Place(_AFTER_FILE + line, f"{path}:{line}"), "support", text))
    return problems_of(recipe)


def _lines(path: str) -> dict[tuple[str, ...], int]:
    """Line of every key of the file, by the keys that lead to it."""

    def walk(node, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*above, str(key.value))
                yield place, key.start_mark.line + 1
                yield from walk(value, place)

    with open(path, encoding="utf-8") as file:
        return dict(walk(Loader(file.read()).get_single_node(), ()))


class _Reading:
    """One file on its way to a Comparison; collects problems."""

    def __init__(self, path: str):
        self.path = path
        self.file: Recipe = read_recipe(path, [])
        self.lines = _lines(path)
        self.problems = list(self.file.problems)

    def comparison(self, with_recipes: bool) -> Comparison:
        values = self.file.values
        for key in values:
            if key not in KEYS:
                self._say((key,), _unknown(key, KEYS, "a comparison"))
        arms = self._arms(values.get("arms"), self._base(values), self._settings(("settings",), values.get("settings")))
        labels = [arm.label for arm in arms]
        found = {
            "name": self._name(values.get("name")),
            "seeds": self._seeds(values.get("seeds")),
            "arms": tuple(arms),
            "baseline": self._one_of(("baseline",), values.get("baseline", next(iter(labels), "")), labels),
            "match": self._match(values.get("match", list(MATCHES))),
            "budget": self._budget(values.get("budget")),
            "tune": (tune := self._tune(values.get("tune"), values.get("settings"))),
            "tuning_seed": self._tuning_seed(values.get("tuning_seed"), tune, values.get("seeds")),
            "launch": self._launch(values.get("launch", "accelerate launch")),
        }
        for arm in arms if with_recipes else ():
            for tried in tried_by(arm, tune) or [{}]:
                laid = replace(arm, settings=arm.settings | tried)
                found_here = _of_recipe(laid, self.path, self.lines) if arm.recipe else []
                self.problems += [problem for problem in found_here if problem not in self.problems]
        raise_all(self.problems)
        return Comparison(**found)

    def _say(self, keys: tuple[str, ...], text: str) -> None:
        """A problem at the line of these keys, or of the nearest above them that is there."""
        line = next((self.lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self.lines), 0)
        name = ".".join(keys[1:] if keys[0] == "arms" and len(keys) > 1 else keys)
        self.problems.append(Problem(Place(line, f"{self.path}:{line}" if line else self.path), name, text))

    def _name(self, value: Any) -> str:
        if not (isinstance(value, str) and _NAME.fullmatch(value)):
            what = "missing" if value is None else f"{value!r}"
            self._say(("name",), f"{what}; it names a folder and wandb's group; write letters, digits, . _ -")
        return value

    def _seeds(self, value: Any) -> tuple[int, ...]:
        ok = isinstance(value, list) and value and all(type(x) is int and x >= 0 for x in value)
        if not ok or len(set(value)) < len(value):
            what = "missing" if value is None else f"{value!r}"
            self._say(("seeds",), f"{what}; each seed is one run of every arm; write seeds: [0, 1, 2]")
            return ()
        return tuple(value)

    def _base(self, values: Mapping[str, Any]) -> str | None:
        value = values.get("base")
        if value is None:
            return None
        return self._recipe(("base",), value)

    def _recipe(self, keys: tuple[str, ...], value: Any) -> str | None:
        """A recipe that can be opened and is YAML; what is in it is looked at later."""
        if not isinstance(value, str):
            self._say(keys, f"{value!r}; the path of a recipe is wanted; write recipes/rl.yaml")
            return None
        try:
            read_recipe(value, [])
        except RecipeError as error:
            self._say(keys, str(error).removeprefix("--config: "))
            return None
        return value

    def _settings(self, keys: tuple[str, ...], value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._say(keys, f"{value!r}; keys of a recipe are wanted; write settings: {{learning_rate: 1e-4}}")
            return {}
        for key in SET_HERE:
            if key in value:
                self._say((*keys, key), "set for every run by the comparison; runs must not share it; remove it")
        if "support_budget" in value:
            self._say((*keys, "support_budget"), "verdicts are compared at one B; write budget: above the arms")
        return {str(key): item for key, item in value.items()}

    def _arms(self, value: Any, base: str | None, common: dict[str, Any]) -> list[Arm]:
        if not isinstance(value, dict) or len(value) < 2:
            self._say(("arms",), "fewer than two; arms are compared with each other; write arms: {rl: {}, sft: {...}}")
            return []
        return [self._arm(str(label), body, base, common) for label, body in value.items()]

    def _arm(self, label: str, body: Any, base: str | None, common: dict[str, Any]) -> Arm:
        at = ("arms", label)
        if not _NAME.fullmatch(label):
            self._say(at, "the label names a folder; that is no plain name; write letters, digits, . _ -")
        if not isinstance(body, dict | None):
            self._say(at, f"{body!r}; an arm has recipe, settings and role; write {label}: {{settings: {{...}}}}")
        body = body if isinstance(body, dict) else {}
        for key in body:
            if key not in ARM_KEYS:
                self._say(
                    (*at, str(key)), _unknown(str(key), ARM_KEYS, "an arm", "; keys of a recipe go into settings")
                )
        recipe = self._recipe((*at, "recipe"), body["recipe"]) if "recipe" in body else base
        if recipe is None and "recipe" not in body and "base" not in self.file.values:
            self._say(at, "no recipe; there is no base either; write base: RECIPE.yaml above the arms")
        settings = common | self._settings((*at, "settings"), body.get("settings"))
        return Arm(label, recipe or "", settings, self._one_of((*at, "role"), body.get("role", ROLES[0]), ROLES))

    def _one_of(self, keys: tuple[str, ...], value: Any, choices) -> str:
        if value not in choices and choices:
            self._say(keys, f"{value!r}; not one of {', '.join(choices)}; write one of them")
        return value

    def _match(self, value: Any) -> tuple[str, ...]:
        words = [value] if isinstance(value, str) else value
        if not (isinstance(words, list) and words and all(word in MATCHES for word in words)):
            self._say(("match",), f"{value!r}; generated tokens, KL or both can be equal; write match: [generated, kl]")
            return ()
        return tuple(dict.fromkeys(words))

    def _budget(self, value: Any) -> int | None:
        if value is not None and not (type(value) is int and value >= 1):
            self._say(("budget",), f"{value!r}; B counts draws of the reference; write budget: 1024")
        return value

    def _tune(self, value: Any, common: Any) -> dict[str, tuple]:
        """Tuned keys with the values that are tried."""
        if value is None:
            return {}
        if not isinstance(value, dict) or not value:
            self._say(("tune",), f"{value!r}; keys of a recipe are wanted; write tune: {{learning_rate: [3e-4, 1e-3]}}")
            return {}
        for key, tried in value.items():
            if not (isinstance(tried, list) and len(tried) > 1):
                self._say(("tune", str(key)), f"{tried!r}; two values or more are tried; write {key}: [A, B]")
            elif key in SET_HERE or key == "support_budget":
                self._say(("tune", key), "set for every run by the comparison; runs must not share it; remove it")
            elif isinstance(common, dict) and key in common:
                self._say(("settings", key), "tuned as well; every arm would keep this value; remove it here")
        return {str(key): tuple(tried) for key, tried in value.items() if isinstance(tried, list)}

    def _tuning_seed(self, value: Any, tune: Mapping[str, tuple], seeds: Any) -> int | None:
        if not tune:
            if value is not None:
                self._say(("tuning_seed",), "nothing is tuned; it would do nothing; write tune, or remove it")
            return None
        if not (type(value) is int and value >= 0) or (isinstance(seeds, list) and value in seeds):
            what = "missing" if value is None else f"{value!r}"
            more = "trials on a seed that is compared would choose by its luck; write tuning_seed: 100"
            self._say(("tuning_seed",), f"{what}; {more}")
        return value

    def _launch(self, value: Any) -> tuple[str, ...]:
        if not (isinstance(value, str) and value.strip()):
            self._say(("launch",), f"{value!r}; the words before scripts/train.py; write launch: accelerate launch")
            return ()
        return tuple(shlex.split(value))


def _unknown(key: str, known: tuple[str, ...], of: str, more: str = "") -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"unknown key; {of} has {', '.join(known)}{more}; " + (f"did you mean {near[0]}?" if near else "remove it")

"""Read a recipe: flat YAML, overridden by `--key value`, with the place where each key stands."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fe_posttrain.recipe.loader import Loader, fault, parse, refused


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says what, where and what to write. No traceback is needed."""


class Place(NamedTuple):
    """Where a key stands, in the order in which problems are reported: the file, its lines, the overrides."""

    order: int
    text: str  # `recipe.yaml:12`, or `--beta`


class Problem(NamedTuple):
    """What is wrong with `key` at `place`; `text` reads `what; why; what to write`."""

    place: Place
    key: str
    text: str

    def __str__(self) -> str:
        if self.place.text == f"--{self.key}" or not self.key:
            return f"{self.place.text}: {self.text}"
        return f"{self.place.text}: {self.key}: {self.text}"


@dataclass
class Recipe:
    """Keys and values of a recipe with overrides laid over them.

    `problems` are those of single entries (a key that stands twice, a tag, an override without value); who uses
    `values` reports them.
    """

    path: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, *keys: str) -> Place:
        """Where the first of `keys` that is written stands; the file where none is."""
        return next((self.places[key] for key in keys if key in self.places), Place(0, self.path))


def raise_all(problems: Iterable[Problem]) -> None:
    """Raise every problem in one error, a line each, sorted by place.

    Raises:
        RecipeError: where there is a problem at all.
    """
    lines = dict.fromkeys(str(problem) for problem in sorted(problems, key=lambda p: p.place.order))
    if lines:
        raise RecipeError("\n".join(lines))


def read_recipe(path: str | Path, overrides: list[str]) -> Recipe:
    """The recipe at `path` with the words of `overrides`, `--key value` or `--key=value`, laid over it.

    Raises:
        RecipeError: there is no such file, or it is no YAML mapping at all.
    """
    recipe = Recipe(str(path))
    _read_file(recipe)
    _read_words(recipe, list(overrides))
    return recipe


def _read_file(recipe: Recipe) -> None:
    text = _text(recipe.path)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, RecursionError) as error:
        line, what = fault(error, text)
        raise RecipeError(f"{recipe.path}:{line}: {what}; that is no recipe; write `key: value` lines") from error
    if node is None:
        raise RecipeError(f"{recipe.path}: it is empty; a recipe says what to train; write `key: value` lines")
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        line = node.start_mark.line + 1
        raise RecipeError(f"{recipe.path}:{line}: {kind}; a recipe is a mapping; write `key: value` lines")
    for order, (key_node, value_node) in enumerate(node.value):
        _read_entry(recipe, loader, key_node, value_node, order)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not text in UTF-8 (byte {error.start}); a recipe is YAML; name a recipe") from error
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise RecipeError(f"--config: {path}; {what}; write the path of a recipe, as recipes/rl.yaml") from error


def _read_entry(recipe: Recipe, loader: Loader, key_node, value_node, order: int) -> None:
    line = key_node.start_mark.line + 1
    place = Place(line, f"{recipe.path}:{line}")
    if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.endswith(":str"):
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
        recipe.problems.append(
            Problem(place, "", f"the key {name} is no text; keys are names of settings; write `name: value`")
        )
        return
    key = key_node.value
    if key in recipe.places:
        first = recipe.places[key].order
        text = f"it stands in line {first} and in line {line}; only one can hold; remove one of them"
        recipe.problems.append(Problem(place, key, text))
        return
    recipe.places[key] = place
    try:
        recipe.values[key] = loader.construct_document(value_node)
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        recipe.problems.append(Problem(place, key, refused(error)))


def _read_words(recipe: Recipe, words: list[str]) -> None:
    order = 1_000_000  # after every line of the file
    while words:
        word, order = words.pop(0), order + 1
        flag, equals, text = word.partition("=")
        key = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or not key:
            what = f"{word!r}: not a key; overrides come in pairs; write --key value"
            recipe.problems.append(Problem(Place(order, what.split(":")[0]), "", what.split(": ", 1)[1]))
            continue
        place = Place(order, f"--{key}")
        if not equals:
            if not words or words[0].startswith("--"):
                text = f"no value; overrides come in pairs, true and false are values too; write --{key} VALUE"
                recipe.problems.append(Problem(place, key, text))
                recipe.places[key] = place
                recipe.values.pop(key, None)
                continue
            text = words.pop(0)
        recipe.places[key] = place
        try:
            recipe.values[key] = parse(text)
        except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
            recipe.values.pop(key, None)
            recipe.problems.append(Problem(place, key, refused(error)))

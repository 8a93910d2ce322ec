"""Read a recipe: flat YAML, overridden by `--key value`, with the place where each key stands."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class RecipeError(ValueError):
    """A recipe that cannot be run; the message says what, where and what to write. No traceback is needed."""


class Place(NamedTuple):
    """Where a key stands, in the order in which problems are reported: the file, its lines, the overrides."""

    order: int
    text: str  # `recipe.yaml:12`, or `--beta`
    is_override: bool = False


class Problem(NamedTuple):
    """What is wrong with `key` at `place`; `text` reads `what; why; what to write`."""

    place: Place
    key: str
    text: str

    def __str__(self) -> str:
        if self.place.is_override or not self.key:
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


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values: `5e-7` is a number, `no` and `on` are text, so is `010`; no tags beyond, no aliases."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (as PyYAML has it)
    yaml_constructors = {  # noqa: RUF012
        tag: construct
        for tag, construct in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rsplit(":", 1)[-1] in ("null", "bool", "int", "float", "str", "seq", "map")
    }

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (`*name`): a recipe is read line by line", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands twice in it", node.start_mark)
        return super().construct_mapping(node, deep)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][\d_]*|0x[\da-fA-F]+)", list("-+0123456789")),
    ("float", r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse(text: str) -> Any:
    """The value that `text` is in a recipe. Raises yaml.YAMLError where it is none."""
    return yaml.load(text, Loader=_Loader)


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
        loader = _Loader(text)
        node = loader.get_single_node()
    except (yaml.YAMLError, RecursionError) as error:
        line, what = _fault(error, text)
        raise RecipeError(f"{recipe.path}:{line}: {what}; this is not YAML; write `key: value` lines") from error
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


def _read_entry(recipe: Recipe, loader: _Loader, key_node, value_node, order: int) -> None:
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
        recipe.problems.append(Problem(place, key, _refused(error)))


def _read_words(recipe: Recipe, words: list[str]) -> None:
    order = 1_000_000  # after every line of the file
    while words:
        word, order = words.pop(0), order + 1
        flag, equals, text = word.partition("=")
        key = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or not key:
            what = f"{word!r}: not a key; overrides come in pairs; write --key value"
            recipe.problems.append(Problem(Place(order, what.split(":")[0], True), "", what.split(": ", 1)[1]))
            continue
        place = Place(order, f"--{key}", True)
        if not equals:
            if not words or words[0].startswith("--"):
                text = f"no value; overrides come in pairs, also for what is true or false; write --{key} VALUE"
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
            recipe.problems.append(Problem(place, key, _refused(error)))


def _fault(error: Exception, text: str) -> tuple[int, str]:
    """Line (from 1) and plain words of what PyYAML met."""
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, f"the character number {error.character}"
    if isinstance(error, RecursionError):
        return 1, "nested too deeply"
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or str(error)
    if "'\\t'" in what:
        what = "a tab where YAML wants spaces"
    return (mark.line + 1 if mark else 1), what


def _refused(error: Exception) -> str:
    """What is wrong with one value, in the words of a problem."""
    what = " ".join(str(getattr(error, "problem", None) or error).split())
    if "constructor for the tag" in what:
        tag = what.rsplit("'", 2)[-2].replace("tag:yaml.org,2002:", "!!")
        return f"the tag {tag}; a recipe holds plain values and runs no code; write the value without a tag"
    return f"{what}; the value is not readable YAML; write a number, text, [list] or {{name: value}}"

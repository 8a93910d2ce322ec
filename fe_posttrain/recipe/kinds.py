"""Types of recipe values, by the annotations of the dataclasses: strict, and told in plain words."""

import math
import types
from collections.abc import Iterator
from dataclasses import MISSING, Field
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError

from fe_posttrain.recipe.loader import parse

_BOOLEANS = {"yes": True, "on": True, "y": True, "1": True, "no": False, "off": False, "n": False, "0": False}
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
_EXAMPLE_OF = {"prompts": {"tail_10": 1}, "demonstrations": {"barrier": 1}, "reward_funcs": ["digits"]}
_EXAMPLE_OF |= {"learning_rate": 1e-5, "lora_target_modules": ["q_proj", "v_proj"]}
_EXAMPLES = {bool: True, int: 1, float: 0.1, str: "name"}


def plain(hint: Any) -> Any:
    """The annotation as YAML can fill it: text where an Enum is meant."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return str
    if get_origin(hint) in (Union, types.UnionType):
        return Union[tuple(plain(inner) for inner in get_args(hint))]  # noqa: UP007 (made at run time)
    if get_origin(hint) in (list, dict):
        return get_origin(hint)[tuple(plain(inner) for inner in get_args(hint))]
    return hint


@cache
def adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(plain(hint))


def fits(value: Any, hint: Any) -> bool:
    """Whether `value` is what `hint` says; an int is a float too, and nothing else is converted."""
    try:
        adapter(hint).validate_python(value, strict=True)
    except (ValidationError, RecursionError):
        return False
    return True


def misfit(field: Field, hint: Any, value: Any, choices: tuple = ()) -> str | None:
    """What is wrong with the type of `value`, as `what; why; what to write`; None where nothing is.

    What to write is one of `choices`, where there are any.
    """
    if fits(value, hint):
        return None
    found = _inner_misfit(value, hint) or ("null" if value is None else f"{_shown(value)} is {_kind(value)}")
    return (
        f"{found}; {described(hint)} is wanted; write {field.name}: {_written(_example(field, hint, value, choices))}"
    )


def described(hint: Any) -> str:
    """`a number or null`, `a list of texts`, ..."""
    hint = plain(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(described(inner) for inner in get_args(hint)))
    inner = get_args(hint)
    if get_origin(hint) is list:
        return f"a list of {_several(inner[0])}"
    if get_origin(hint) is dict and inner[1] is not Any:
        return f"a mapping of names to {_several(inner[1])}"
    if dict in (hint, get_origin(hint)):
        return "a mapping"
    if get_origin(hint) is Literal:
        return " or ".join(_written(value) for value in inner)
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _several(hint: Any) -> str:
    """`texts or mappings`"""
    return " or ".join(f"{described(option).removeprefix('a ')}s" for option in _options(hint))


def _kind(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, bool):
        return "a truth value"
    return {int: "a whole number", float: "a number", str: "text", type(None): "nothing"}[type(value)]


def _inner_misfit(value: Any, hint: Any) -> str | None:
    """The entry of a list or mapping that does not fit, where the value is one of the right sort."""
    for option in _options(plain(hint)):
        inner = get_args(option)
        if get_origin(option) is list and isinstance(value, list):
            wrong = next((item for item in value if not fits(item, inner[0])), None)
            return f"{_shown(wrong)} in it is {_kind(wrong)}"
        if get_origin(option) is dict and isinstance(value, dict):
            for name, item in value.items():
                if not fits(name, inner[0]):
                    return f"the name {_shown(name)} in it is {_kind(name)}"
                if not fits(item, inner[1]):
                    return f"{name}: {_shown(item)} in it is {_kind(item)}"
    return None


def _options(hint: Any) -> tuple:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _example(field: Field, hint: Any, value: Any, choices: tuple) -> Any:
    """The nearest value that fits: what was meant, or the default, or any of that type."""
    default = field.default if field.default is not MISSING else None
    default = default.value if isinstance(default, Enum) else default
    for candidate in (*_meant(value), *([] if default in (None, "") else [default])):
        if fits(candidate, hint) and (not choices or candidate in choices):
            return candidate
    if field.name in _EXAMPLE_OF:
        return _EXAMPLE_OF[field.name]
    for option in _options(plain(hint)):
        if get_origin(option) is list:
            return ["name"] if str in _options(get_args(option)[0]) else [1.0]
        if option is dict or get_origin(option) is dict:
            return {"name": 1}
        if option in _EXAMPLES:
            return _EXAMPLES[option]
    return None


def _meant(value: Any) -> Iterator[Any]:
    """What a value of the wrong type was probably meant to be."""
    if isinstance(value, str):
        if value.lower() == "none":
            yield None
        if value.lower() in _BOOLEANS:
            yield _BOOLEANS[value.lower()]
        try:
            read = parse(value.strip().lstrip("0") or "0")
        except yaml.YAMLError:
            read = value
        if not isinstance(read, str):
            yield read
    elif isinstance(value, bool):
        yield from (("yes", "true") if value else ("no", "none", "false"))
    elif isinstance(value, float) and math.isfinite(value):
        yield round(value)
    elif value in (0, 1):
        yield bool(value)
    elif isinstance(value, list):
        if all(isinstance(item, str) for item in value):
            yield dict.fromkeys(value, 1)
        yield from value[:1]
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)
        yield {value: 1}
    if value is not None:
        yield [value]


def _written(value: Any) -> str:
    """A value as a recipe has it, on one line."""
    if isinstance(value, list | dict) or value is None or isinstance(value, str | bool):
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
        return text.removesuffix("\n...").strip()
    return repr(value) if isinstance(value, float) else str(value)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else _written(value)
    return text if len(text) <= 60 else text[:57] + "..."

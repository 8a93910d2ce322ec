"""The JSON schema of a recipe, for editors: the types, ranges and choices that recipes are checked with."""

from dataclasses import MISSING, Field
from enum import Enum
from typing import Any

from fe_posttrain.recipe.checks import FIELDS
from fe_posttrain.recipe.kinds import adapter, fits
from fe_posttrain.tasks.digits import FAMILIES
from fe_posttrain.training.limits import OPEN, Range, limits


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a recipe: one property a key, and no others."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fe_posttrain recipe",
        "description": "Keys of FreeEnergyConfig (with TRL's GRPOConfig), TRL's ModelConfig and RunSettings.",
        "type": "object",
        "properties": {name: _property(name, *entry) for name, entry in sorted(FIELDS.items())},
        "additionalProperties": False,
    }


def _property(name: str, kind: type, field: Field, hint: Any) -> dict[str, Any]:
    ranges, choices = limits(kind)
    found = adapter(hint).json_schema()
    found.pop("title", None)
    if name in ranges:
        found = _with_range(found, ranges[name])
    if name in choices and name not in (*OPEN, "debug"):  # debug is several words in one text
        found = _with_choices(choices[name], hint)
    if name in ("prompts", "demonstrations"):
        found["propertyNames"] = {"enum": list(FAMILIES)}
    default = field.default if field.default is not MISSING else field.default_factory()
    default = default.value if isinstance(default, Enum) else default
    help_text = " ".join(str(field.metadata.get("help", "")).replace("%%", "%").split())
    return {"description": help_text, **found, "default": default}


def _with_range(found: dict[str, Any], span: Range) -> dict[str, Any]:
    bounds: dict[str, Any] = {"exclusiveMinimum" if span.open_low else "minimum": span.low}
    if span.high < float("inf"):
        bounds["exclusiveMaximum" if span.open_high else "maximum"] = span.high
    if not span.also:
        return {**found, **bounds}  # bounds say nothing about what is no number
    return {**found, "anyOf": [bounds, {"enum": list(span.also)}]}


def _with_choices(choices: tuple, hint: Any) -> dict[str, Any]:
    one = {"enum": [*choices, *([None] if fits(None, hint) else [])]}
    if fits([choices[0]], hint):
        return {"anyOf": [one, {"type": "array", "items": {"enum": list(choices)}}]}
    return one

"""`method: NAME` in a recipe: the keys that it stands for, laid under those that the recipe writes."""

from fe_posttrain.methods.presets import METHODS, expanded
from fe_posttrain.recipe.reading import Problem, Recipe
from fe_posttrain.recipe.settings import RunSettings


def expand(recipe: Recipe) -> list[Problem]:
    """Add the keys of `method` to the recipe, at the place of that line; returns what the method lacks.

    A name that no method has is left to the check of choices.
    """
    name = recipe.values.get("method")
    if not isinstance(name, str) or name not in METHODS:
        return []
    place = recipe.place("method")
    for key, value in expanded(name, recipe.values).items():
        if key not in recipe.places:
            recipe.values[key] = value
            recipe.places[key] = place
    missing = [key for key in METHODS[name].asks if key not in recipe.places]
    return [
        Problem(place, "method", f"{name} without {key}; its settings cannot name it; write {key} too")
        for key in missing
    ]


def described(settings: RunSettings, values: dict) -> list[str]:
    """For the opening of a run: the method and every key that it stands for, with the value in force."""
    if settings.method is None:
        return []
    method = METHODS[settings.method]
    keys = ", ".join(f"{key}: {values[key]}" for key in method.settings)
    return [f"method: {method.title} ({keys})"]

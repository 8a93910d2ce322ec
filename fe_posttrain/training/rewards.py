"""Reward functions: by name, dotted path or file, with arguments, and what stands in where F has no reward energy."""

import difflib
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

# name: where it is. TRL's signature: f(prompts, completions, **columns) -> one float per completion.
REWARDS = {
    "chain_sum": "fe_posttrain.tasks.chain_sum:correct",
    "digits": "fe_posttrain.tasks.digits:correct",
    "formats": "fe_posttrain.tasks.formats:correct",
    "gsm8k": "fe_posttrain.tasks.gsm8k:correct",
}
_NEEDS = {"chain_sum": ("reasoning_gym", "tasks"), "gsm8k": ("math_verify", "math")}  # name: package, our extra
FORMS = "a name, package.module:function, package.module.function, or path/to/file.py:function"


def find_reward(entry: str | dict[str, dict[str, Any]]) -> Callable:
    """The reward function that an entry of `reward_funcs` means.

    Args:
        entry: a name of `REWARDS`, `package.module:function`, `package.module.function` or `file.py:function`; with
            arguments as a mapping of one such word to them. Arguments of a function are bound by keyword; a class is
            called with them and its instance is the reward.

    Raises:
        ValueError: it is not there or does not take these arguments; the message says what to write.
    """
    word, arguments = entry, {}
    if isinstance(entry, dict):
        if len(entry) != 1:
            raise ValueError(f"reward_funcs: {entry!r}; an entry is one reward; write `- NAME: {{argument: value}}`")
        ((word, arguments),) = entry.items()
        if not isinstance(arguments, dict):
            raise ValueError(f"reward_funcs: {word}: {arguments!r}; arguments have names; write {{name: value}}")
    if not isinstance(word, str):
        raise ValueError(f"reward_funcs: {word!r} is a {type(word).__name__}; write {FORMS}")
    function = _look_up(word)
    if not callable(function):
        raise ValueError(f"reward_funcs: {word}: a {type(function).__name__} and no function; name a function")
    if not (arguments or inspect.isclass(function)):
        return function
    try:
        inspect.signature(function).bind_partial(**arguments)
        return function(**arguments) if inspect.isclass(function) else functools.partial(function, **arguments)
    except TypeError as error:
        raise ValueError(f"reward_funcs: {word}: {error}; write arguments that it takes") from error


def no_reward(prompts: list, **_) -> list[float]:
    """The reward of a run whose F has none (w_r = 0): GRPOTrainer asks for one function at least."""
    return [0.0] * len(prompts)


def _look_up(word: str) -> Any:
    package, extra = _NEEDS.get(word, (None, None))
    if package and find_spec(package) is None:
        raise ValueError(
            f"reward_funcs: {word}: needs the package {package}, which is not installed; pip install -e '.[{extra}]'"
        )
    path = REWARDS.get(word, word)
    where, colon, attribute = path.rpartition(":")
    if not colon:
        where, _, attribute = path.rpartition(".")
    if not where or path.endswith(".py"):
        near = difflib.get_close_matches(word, REWARDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"write {FORMS}"
        raise ValueError(f"reward_funcs: {word!r}; no such reward (known: {', '.join(sorted(REWARDS))}); {hint}")
    module = _module(word, where)
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(attribute, public, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(public) or 'no functions'}"
        raise ValueError(f"reward_funcs: {word!r}; {where} has no {attribute!r}; {hint}") from None


def _module(word: str, where: str) -> ModuleType:
    """Import a module by name, or a file by its path. What it raises is reported with file and line."""
    try:
        if not where.endswith(".py"):
            if os.getcwd() not in sys.path:  # as TRL's scripts do: a user's package lies where the run is started
                sys.path.insert(0, os.getcwd())
            return import_module(where)
        path = Path(where).expanduser()
        if not path.is_file():
            raise ValueError(f"reward_funcs: {word!r}; there is no file {path}; write the path of a .py file")
        name = f"reward_file_{path.stem}"
        spec = spec_from_file_location(name, path)
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        raise ValueError(f"reward_funcs: {word!r}; {error}; write {FORMS}") from error
    except ValueError:
        raise
    except Exception as error:  # whatever the user's file does when it is imported
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        raise ValueError(f"reward_funcs: {word!r}; importing it failed with {what}; mend it") from error

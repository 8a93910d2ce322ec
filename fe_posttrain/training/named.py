"""Functions that a recipe names: one of ours, a dotted path or a file of the user's, with arguments."""

import difflib
import functools
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

FORMS = "a name, package.module:function, package.module.function, or path/to/file.py:function"


class Kind(NamedTuple):
    """What a key of a recipe may name.

    Args:
        key: of the recipe, for messages.
        noun: what it names.
        known: name -> the function, or where it is, as `package.module:function`.
        needs: name -> (package that must be installed, our extra that installs it).
    """

    key: str
    noun: str
    known: Mapping[str, str | Callable]
    needs: Mapping[str, tuple[str, str]] = {}


def find(kind: Kind, entry: str | dict[str, dict[str, Any]]) -> Callable:
    """The function that an entry of `kind.key` means.

    Args:
        entry: a name of `kind.known`, `package.module:function`, `package.module.function` or `file.py:function`; with
            arguments as a mapping of one such word to them. Arguments of a function are bound by keyword; a class is
            called with them and its instance is what is meant.

    Raises:
        ValueError: it is not there or does not take these arguments; the message says what to write.
    """
    key, (word, arguments) = kind.key, split(kind, entry)
    function = _look_up(kind, word)
    if not callable(function):
        raise ValueError(f"{key}: {word}: a {type(function).__name__} and no function; name a function")
    if not (arguments or inspect.isclass(function)):
        return function
    try:
        inspect.signature(function).bind_partial(**arguments)
        return function(**arguments) if inspect.isclass(function) else functools.partial(function, **arguments)
    except TypeError as error:
        raise ValueError(f"{key}: {word}: {error}; write arguments that it takes") from error


def split(kind: Kind, entry: str | dict[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The word of an entry and its arguments.

    Raises:
        ValueError: it is neither a word nor a mapping of one word to named arguments.
    """
    word, arguments = entry, {}
    if isinstance(entry, dict):
        if len(entry) != 1:
            raise ValueError(f"{kind.key}: {entry!r}; an entry is one {kind.noun}; write `- NAME: {{argument: value}}`")
        ((word, arguments),) = entry.items()
        if not isinstance(arguments, dict):
            raise ValueError(f"{kind.key}: {word}: {arguments!r}; arguments have names; write {{name: value}}")
    if not isinstance(word, str):
        raise ValueError(f"{kind.key}: {word!r} is a {type(word).__name__}; write {FORMS}")
    return word, arguments


def _look_up(kind: Kind, word: str) -> Any:
    package, extra = kind.needs.get(word, (None, None))
    if package and find_spec(package) is None:
        raise ValueError(
            f"{kind.key}: {word}: needs the package {package}, which is not installed; pip install -e '.[{extra}]'"
        )
    path = kind.known.get(word, word)
    if callable(path):
        return path
    where, colon, attribute = path.rpartition(":")
    if not colon:
        where, _, attribute = path.rpartition(".")
    if not where or path.endswith(".py"):
        near = difflib.get_close_matches(word, kind.known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"write {FORMS}"
        known = ", ".join(sorted(kind.known))
        raise ValueError(f"{kind.key}: {word!r}; no such {kind.noun} (known: {known}); {hint}")
    module = _module(kind.key, word, where)
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = difflib.get_close_matches(attribute, public, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(public) or 'no functions'}"
        raise ValueError(f"{kind.key}: {word!r}; {where} has no {attribute!r}; {hint}") from None


def _module(key: str, word: str, where: str) -> ModuleType:
    """Import a module by name, or a file by its path. What it raises is reported with file and line."""
    try:
        if not where.endswith(".py"):
            if os.getcwd() not in sys.path:  # as TRL's scripts do: a user's package lies where the run is started
                sys.path.insert(0, os.getcwd())
            return import_module(where)
        path = Path(where).expanduser()
        if not path.is_file():
            raise ValueError(f"{key}: {word!r}; there is no file {path}; write the path of a .py file")
        return _executed(path.resolve(), path.stat().st_mtime_ns)
    except ModuleNotFoundError as error:
        raise ValueError(f"{key}: {word!r}; {error}; write {FORMS}") from error
    except ValueError:
        raise
    except Exception as error:  # whatever the user's file does when it is imported
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        raise ValueError(f"{key}: {word!r}; importing it failed with {what}; mend it") from error


@functools.cache
def _executed(path: Path, changed: int) -> ModuleType:
    """The module of a file, run once as long as the file stays as it is: gates and schedules are asked at each step."""
    name = f"named_file_{path.stem}"
    spec = spec_from_file_location(name, path)
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

"""What a recipe names outside itself, files, models, families and rewards: found before anything is loaded."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

from fe_posttrain.tasks.bases import BASES
from fe_posttrain.tasks.digits import FAMILIES
from fe_posttrain.tasks.files import TASKS
from fe_posttrain.training.rewards import find_reward

READ = (".jsonl", ".json", ".parquet")
_DATA = ("dataset_name", "eval_dataset_name", "demonstration_dataset_name", "support_dataset_name")
_FILES = ("chat_template_path", "deepspeed", "fsdp_config", "accelerator_config")
_TABLES = (*READ, ".csv", ".tsv", ".txt", ".arrow", ".xlsx", ".yaml", ".gz", ".zip")


def not_found(run: SimpleNamespace) -> Iterator[tuple[str, str]]:
    """Key and problem (`what; why; what to write`) of everything that `run` names and that is not there.

    A name that does not look like a path may be one of the Hub; only reading it can tell.
    """
    for key in _DATA:
        if text := _data(getattr(run, key)):
            yield key, text
    for key in ("model_name_or_path", "reference_model_name_or_path", "reward_model_name_or_path"):
        if text := _model(key, getattr(run, key)):
            yield key, text
    for key in _FILES:
        name = getattr(run, key)
        is_path = isinstance(name, str) and (_looks_local(name) or name.endswith((".jinja", ".json")))
        if is_path and not name.startswith("{") and not Path(name).expanduser().exists():
            yield key, f"{name}; there is no such file{_beside(name)}; write the path of one"
    for key in ("prompts", "demonstrations"):
        yield from ((key, text) for text in _families(getattr(run, key)))
    for entry in run.reward_funcs:
        if text := _reward(entry):
            yield "reward_funcs", text
    for key in ("support_signal", "support_labels", "failure_buffer_format"):
        if (name := getattr(run, key)) and (text := _reward(name)):
            yield key, text
    for name, path in run.support_channels.items():
        if text := _reward(path):
            yield "support_channels", f"{name}: {text}"


def _looks_local(name: str) -> bool:
    return name.startswith((".", "~", "/")) or name.count("/") > 1


def _beside(name: str) -> str:
    """A file of nearly that name in the same folder."""
    folder = Path(name).expanduser().parent
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(Path(name).name, names, n=1, cutoff=0.75)
    return f" (there is {near[0]})" if near else ""


def _data(name: str | None) -> str | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if suffix in _TABLES or _looks_local(name) or path.is_file():
        if (suffix in _TABLES or path.is_file()) and suffix not in READ:
            return f"{name}; files of {suffix or 'no suffix'} are not read; write one of {', '.join(READ)}"
        if not path.exists():
            return f"{name}; there is no such file{_beside(name)}; write the path of one, or a name of the Hub"
        return None
    if name in FAMILIES:
        return f"{name}; it is a family of the testbed; write prompts or demonstrations: {{{name}: 1}}"
    if near := difflib.get_close_matches(name, TASKS, n=1, cutoff=0.7):
        if near[0] != name and not path.exists():
            return f"{name}; no task is called so; did you mean {near[0]}? write that, a file or a name of the Hub"
    return None


def _model(key: str, name: str | None) -> str | None:
    wanted = "a folder with config.json, or a name of the Hub"
    if name is None:
        return None if key != "model_name_or_path" else f"missing; something must be trained; write testbed, {wanted}"
    if name in BASES and key != "reward_model_name_or_path":
        return None
    path = Path(name).expanduser()
    if path.is_file():
        return f"{name}; it is a file; a model is a folder of files; write {wanted}"
    if path.is_dir():
        return None if (path / "config.json").is_file() else f"{name}; it holds no config.json; write {wanted}"
    if _looks_local(name):
        return f"{name}; there is no such folder{_beside(name)}; write {wanted}"
    if near := difflib.get_close_matches(name, BASES, n=1, cutoff=0.76):
        return f"{name}; no model is called so; did you mean {near[0]}? write that, {wanted}"
    return None


def _families(weights: dict[str, float]) -> Iterator[str]:
    for name, weight in weights.items():
        if name not in FAMILIES:
            near = difflib.get_close_matches(name, FAMILIES, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            yield f"{name!r}; no family is called so; {hint}write some of {', '.join(FAMILIES)}"
        elif not weight > 0:
            yield f"{name}: {weight:g}; its weight is relative to the others'; write a number above 0, or remove it"


def _reward(entry: str | dict) -> str | None:
    """What `find_reward` finds wrong; it imports the module that the entry names."""
    if isinstance(entry, dict) and not (
        len(entry) == 1 and all(isinstance(k, str) and isinstance(v, dict) for k, v in entry.items())
    ):
        return f"{entry}; an entry with arguments is one name and its mapping; write - name: {{argument: value}}"
    try:
        find_reward(entry)
    except ValueError as error:
        return str(error).removeprefix("reward_funcs: ")
    return None

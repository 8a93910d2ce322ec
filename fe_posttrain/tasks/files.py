"""One's own rows: a JSON Lines, JSON or Parquet file, a folder of them, a dataset of the Hub, or a task by name.

Rows are counted from 1, so that row 4 of a JSON Lines file is its line 4. Nothing that is read is ever executed:
files go through the json and parquet readers of `datasets`, and Hub datasets have no scripts since `datasets` 4.
"""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import pyarrow
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError

# name: where its `load(split) -> Dataset` is.
TASKS = {"gsm8k": "fe_posttrain.tasks.gsm8k:load", "formats": "fe_posttrain.tasks.formats:load"}

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_SPLIT_WORDS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
_KINDS = ".jsonl, .json or .parquet"


def load_rows(name: str, *, config: str | None = None, split: str = "train") -> Dataset:
    """The rows that `name` stands for.

    Args:
        name: a task of `TASKS`; the path of a file or of a folder; or a dataset of the Hub.
        config: configuration of a Hub dataset.
        split: which rows. A file is all `train`. In a folder, the files called `test.jsonl`, `test-0.parquet` or
            `test/...` are the split test; where no name says anything, everything is `train`.

    Raises:
        ValueError: `what; why; what to write`, naming the file and the line where there is one.
    """
    if config is not None and (name in TASKS or _is_local(name)):
        raise ValueError(f"{name}: configuration {config!r}; only datasets of the Hub have one; leave it out")
    if name in TASKS:
        module, _, function = TASKS[name].partition(":")
        return getattr(import_module(module), function)(split)
    rows = _read(local_files(name, split)) if _is_local(name) else _from_hub(name, config, split)
    if len(rows) == 0:
        raise ValueError(f"{name}: no rows in split {split}; there is nothing to train on; write rows into it")
    return rows


def local_files(name: str, split: str = "train") -> list[Path]:
    """The files of this machine that `load_rows` reads for a split, sorted; none for tasks and the Hub.

    Raises:
        ValueError: no such file, nothing readable in the folder, or no such split.
    """
    if name in TASKS or not _is_local(name):
        return []
    path = Path(name).expanduser()
    if path.is_dir():
        return _split_of(path, split)
    if path.suffix not in READERS:
        raise ValueError(f"{name}: a file of another kind; rows are read from {_KINDS}; convert it")
    if not path.is_file():
        raise ValueError(f"{name}: no such file; rows are read from it; write the path of a {_KINDS} file")
    if split != "train":
        raise ValueError(
            f"{name}: no split {split}; one file is all train; write a folder with train{path.suffix} and "
            f"{split}{path.suffix}, or give those rows a file of their own"
        )
    return [path]


def _is_local(name: str) -> bool:
    path = Path(name).expanduser()
    return path.exists() or path.suffix in READERS or name.startswith(("/", "./", "../", "~"))


def _split_of(folder: Path, split: str) -> list[Path]:
    """The files of a folder that belong to a split, by their names."""
    if (folder / "dataset_info.json").is_file():
        raise ValueError(
            f"{folder}: written by save_to_disk; rows are read from {_KINDS}; write it with to_parquet instead"
        )
    found = sorted(path for path in folder.rglob("*") if path.suffix in READERS and path.is_file())
    words = {path: _split_words(path.relative_to(folder)) for path in found}
    found = [path for path in found if "" not in words[path]]  # not in .cache, .git
    chosen = [path for path in found if split in words[path]]
    if not chosen and split == "train" and not any(said & _SPLIT_WORDS for said in words.values()):
        chosen = found
    if not chosen:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:5]) or "none"
        raise ValueError(
            f"{folder}: no split {split}; its {_KINDS} files are: {names}; call one {split}.jsonl or {split}.parquet"
        )
    if len(kinds := {READERS[path.suffix] for path in chosen}) > 1:
        raise ValueError(f"{folder}: {' and '.join(sorted(kinds))} files in split {split}; keep one kind")
    return chosen


def _split_words(path: Path) -> set[str]:
    """What the names of a file and its folders say: {data, train} of data/train-00000-of-00002.parquet, and the first
    name of a split wherever it stands: {math, train} of math_train.jsonl."""
    said: set[str] = set()
    for part in path.parts:
        words = re.split(r"[-_.]", part.lower())
        said.add(words[0])
        said |= set([word for word in words if word in _SPLIT_WORDS][:1])
    return said


def _read(files: list[Path]) -> Dataset:
    for path in files:
        if path.stat().st_size == 0:
            raise ValueError(f"{path}: empty; there is nothing to train on; write rows into it")
    if READERS[files[0].suffix] == "json":
        return _as_columns(files, [(path, line, row) for path in files for line, row in _json_rows(path)])
    try:
        return load_dataset("parquet", data_files=[str(path) for path in files], split="train")
    except Exception as error:  # whatever the reader's complaint is, the person needs the file
        cause = str(error.__cause__ or error).splitlines()[0]
        names = ", ".join(map(str, files[:5]))
        raise ValueError(f"{names}: cannot be read; {cause}; write {_KINDS} with one row shape") from error


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and object of every row: one object a line, or one list of them. Nothing is guessed: a date stays text."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} line {line}: not UTF-8; JSON is; save the file as UTF-8") from error
    whole = text.lstrip().startswith("[")
    for first, document in [(1, text)] if whole else enumerate(text.split("\n"), start=1):
        if not document.strip():
            continue
        try:
            value = json.loads(document, parse_constant=_refuse_constant)
        except ValueError as error:
            line = first + getattr(error, "lineno", 1) - 1
            why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            remedy = "mend the list" if whole else "write one JSON object a line"
            raise ValueError(f"{path} line {line}: not JSON ({why}); {remedy}") from error
        for number, row in enumerate(value, start=1) if whole else [(first, value)]:
            if not isinstance(row, dict):
                place = f"row {number} of the list" if whole else f"line {number}"
                kind = type(row).__name__
                raise ValueError(f'{path} {place}: a {kind}; a row is an object; write {{"prompt": ...}}')
            yield number, row


def _as_columns(files: list[Path], rows: list[tuple[Path, int, dict[str, Any]]]) -> Dataset:
    """The rows as a dataset; a key that a row lacks is None there.

    Raises:
        ValueError: a column whose values have no common type, naming the first row that differs.
    """
    columns: dict[str, list] = {key: [] for key in dict.fromkeys(key for _, _, row in rows for key in row)}
    for _, _, row in rows:
        for key, values in columns.items():
            values.append(row.get(key))
    for key, values in columns.items():
        kinds = {}
        for (path, line, _), value in zip(rows, values, strict=True):
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"{path} line {line}: {key}: an integer beyond 64 bits; write it as text")
            if value is not None:
                kinds.setdefault(_json_kind(value), (path, line))
        if len(kinds) > 1:
            (one, _), (other, (path, line)) = list(kinds.items())[:2]
            raise ValueError(
                f"{path} line {line}: {key}: {other}, where rows before it hold {one}; a column has one type; write "
                "all of them alike"
            )
    try:
        return Dataset.from_dict(columns)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
        names = ", ".join(map(str, files[:5]))
        raise ValueError(f"{names}: cannot be read; {str(error).splitlines()[0]}; write one row shape") from error


def _json_kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    return {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}[type(value)]


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _from_hub(name: str, config: str | None, split: str) -> Dataset:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"{name}: neither a file, a folder nor a Hub name; write a path or owner/name")
    try:
        return load_dataset(name, config, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        of = f", configuration {config}" if config else ""
        why = " ".join(str(error).split())
        raise ValueError(
            f"{name} (split {split}{of}): no file, folder or task of this name ({', '.join(TASKS)}), and the Hub "
            f"says: {why}; write the path of a {_KINDS} file, or mend name, split or connection"
        ) from error

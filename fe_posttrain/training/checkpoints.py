"""Checkpoint folders that are whole or absent: a manifest with the hash of every file, and one rename at the end.

A run folder holds `checkpoint-STEP` folders. Each is written under `.staging`, gets its `manifest.json` last, and
appears by one rename; a process that is killed at any moment leaves a staging folder and nothing else. Whoever reads
one checks every file against the manifest first.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

MANIFEST = "manifest.json"
STAGING = ".staging"
PREFIX = "checkpoint-"
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)  # torch's C++ writer raises RuntimeError: see failed_write
NEVER_KEPT = ("training_args.bin",)  # a pickle, which may hold an access token


def write_manifest(folder: Path, step: int, notes: dict[str, Any]) -> None:
    """Drop what is never kept, hash every other file, flush them to disk, and write the manifest last."""
    for name in NEVER_KEPT:
        (folder / name).unlink(missing_ok=True)
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    content = {"step": step, "files": files, **notes}
    content["sha256"] = _digest(content)
    with open(folder / MANIFEST, "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote, notes included.

    Raises:
        ValueError: it is missing, cut short or changed.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text())
        stated = content.pop("sha256")
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{MANIFEST} is no manifest") from None
    if stated != _digest(content):
        raise ValueError(f"{MANIFEST} was changed")
    return content


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in words; None if every file is as it was written."""
    try:
        files = read_manifest(folder)["files"]
    except ValueError as error:
        return str(error)
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != wanted["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {wanted['bytes']}"
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wanted["sha256"]:
                return f"{name} was changed (its hash differs)"
    return None


@dataclass(frozen=True)
class Found:
    """The newest complete checkpoint of a run folder (None: there is none), and why newer ones were passed over."""

    folder: Path | None
    damaged: list[str]


def newest_complete(run_folder: str | Path) -> Found:
    """Look at the checkpoints of a run folder from the newest on, until one is whole."""
    damaged = []
    for folder in reversed(checkpoints(run_folder)):
        wrong = damage(folder)
        if wrong is None:
            return Found(folder, damaged)
        damaged.append(f"{folder}: {wrong}")
    return Found(None, damaged)


def require_resumable(folder: Path, processes: int) -> None:
    """A whole checkpoint can be continued from: it holds more than weights, and was saved by as many processes.

    Raises:
        ValueError: otherwise.
    """
    manifest = read_manifest(folder)
    if not manifest["resumable"]:
        raise ValueError(
            f"--resume: {folder} holds weights alone (save_only_model: true); a run cannot continue from it; "
            "write its path as model_name_or_path and start a new run"
        )
    if manifest["processes"] != processes:
        raise ValueError(
            f"--resume: {folder} was saved by {manifest['processes']} processes and there are {processes}; rows and "
            "random states belong to processes; launch as many"
        )


def checkpoints(run_folder: str | Path) -> list[Path]:
    """Checkpoint folders, oldest first, whole or not."""
    found = [path for path in Path(run_folder).glob(f"{PREFIX}*") if _step(path) is not None and path.is_dir()]
    return sorted(found, key=_step)


def publish(staged: Path, run_folder: Path) -> Path:
    """Move a staged checkpoint to its place by one rename; one of the same step that lies there makes way."""
    place = run_folder / staged.name
    if place.exists():
        discard(place)
    staged.rename(place)
    _flush_folder(run_folder)
    return place


def rotate(run_folder: Path, keep: int | None, protected: str | Path | None) -> None:
    """Remove the oldest checkpoints beyond `keep`, but never `protected` (the best one)."""
    if not keep:
        return
    spared = Path(protected).resolve() if protected else None
    for folder in checkpoints(run_folder)[:-keep]:
        if folder.resolve() != spared:
            discard(folder)


def discard(folder: Path) -> None:
    """Remove a folder so that no half of it can be taken for a checkpoint: renamed first, then deleted."""
    away = Path(tempfile.mkdtemp(prefix=f"{STAGING}-", dir=folder.parent))
    folder.rename(away / folder.name)
    shutil.rmtree(away)


def clear_staging(run_folder: Path) -> None:
    """Remove what killed processes left."""
    for leftover in run_folder.glob(f"{STAGING}*"):
        shutil.rmtree(leftover)


def failed_write(error: BaseException) -> str:
    """In one line, why a file could not be written.

    Raises:
        RuntimeError: `error` itself, when it is torch's and about something else.
    """
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    if not isinstance(error, RuntimeError):
        return line
    if any(mark in line for mark in ("PytorchStreamWriter", "inline_container", "unexpected pos")):
        return f"torch could not write a file ({line})"
    raise error


def _step(folder: Path) -> int | None:
    text = folder.name.removeprefix(PREFIX)
    return int(text) if text.isdecimal() else None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

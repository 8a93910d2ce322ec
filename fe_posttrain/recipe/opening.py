"""Where a run writes, what it continues from, and whether it is still the run that the checkpoint belongs to."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fe_posttrain.recipe.reading import RecipeError
from fe_posttrain.training.checkpoints import clear_staging, newest_complete, read_manifest, require_resumable
from fe_posttrain.training.recording import cut
from fe_posttrain.training.run import RunFolder, library_versions, plain

# Keys that may differ when a run resumes: where it writes and how it talks, not what it computes.
MAY_DIFFER = frozenset(
    "output_dir report_to run_name project trackio_space_id disable_tqdm log_level log_level_replica log_completions "
    "num_completions_to_print save_steps save_strategy save_total_limit push_to_hub hub_model_id hub_strategy "
    "hub_token hub_private_repo logging_dir dataloader_num_workers dataloader_prefetch_factor dataset_num_proc "
    "merge_adapter wandb_project wandb_entity wandb_run_group wandb_job_type".split()
)
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_key|access_key)$", re.IGNORECASE)
_NO_SECRET = frozenset({"eos_token", "pad_token", "bos_token", "vllm_structured_outputs_regex"})


@dataclass(frozen=True)
class Opened:
    """The run folder, the checkpoint to continue from (None: from the beginning), and what there is to say about it."""

    folder: RunFolder
    checkpoint: Path | None
    remarks: list[str]


def open_run(output_dir: str, *, resume: bool, processes: int) -> Opened:
    """Make a fresh run folder, or find where a run in it stopped. Called on one process; the others are told.

    Raises:
        ValueError: the folder is in use and the run is not to be resumed, or its checkpoint cannot be continued.
    """
    folder = RunFolder(output_dir, resumed=resume)
    if not resume:
        return Opened(folder, None, [])
    clear_staging(folder.path)
    found = newest_complete(folder.path)
    remarks = [f"passed over a damaged checkpoint: {line}" for line in found.damaged]
    if found.folder is None:
        for path in (folder.metrics, folder.events):
            cut(path, 0)
        remarks.append(f"--resume: no complete checkpoint in {folder.path}; starting from the beginning")
        return Opened(folder, None, remarks)
    require_resumable(found.folder, processes)
    remarks.append(f"continuing from {found.folder}")
    return Opened(folder, found.folder, remarks)


def resolved(parts: Iterable[dict[str, Any]], files: Iterable[Path]) -> dict[str, Any]:
    """Every setting of the run as plain values: what recipe.yaml shows and what checkpoints are compared by.

    Secrets are replaced by `<hidden>`; `files` (data, rewards, templates on this machine) appear with their hashes.
    """
    merged: dict[str, Any] = {}
    for part in parts:
        merged |= part
    merged = plain(hide_secrets(merged))
    merged["files"] = {str(path): _hash(path) for path in sorted(set(files))}
    return merged


def hide_secrets(value: Any, key: str = "") -> Any:
    """The value with every string under a key like `hub_token` or `api_key` replaced, at any depth."""
    if isinstance(value, dict):
        return {name: hide_secrets(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_secrets(item, key) for item in value]
    secret = isinstance(value, str) and key not in _NO_SECRET and _SECRET.search(key)
    return "<hidden>" if secret else value


def require_same_recipe(checkpoint: Path, now: dict[str, Any], *, allowed: bool) -> list[str]:
    """Remarks about what differs between the checkpoint's recipe and this one.

    Raises:
        RecipeError: something that changes the run differs and `allowed` is false; one line for each key.
    """
    then = read_manifest(checkpoint)["recipe"]
    lines = []
    for key in sorted((then.keys() | now.keys()) - MAY_DIFFER):
        if then.get(key) != now.get(key):
            lines.append(f"{key}: {json.dumps(then.get(key))} in {checkpoint.name}, {json.dumps(now.get(key))} now")
    if lines and not allowed:
        raise RecipeError(
            f"--resume: the recipe is not the one that {checkpoint} was made with:\n  "
            + "\n  ".join(lines)
            + "\nwrite it as it was, start a new run, or add --allow-changed-recipe"
        )
    return [f"changed since {checkpoint.name}: {line}" for line in lines]


def versions_differ(folder: RunFolder) -> list[str]:
    """Remarks about libraries that are not those the run began with: it may no longer continue bit for bit."""
    try:
        then = json.loads((folder.path / "versions.json").read_text())
    except (OSError, ValueError):
        return []
    now = library_versions()
    return [
        f"{name} was {then[name]} when the run began and is {now[name]}" for name in now if then.get(name) != now[name]
    ]


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

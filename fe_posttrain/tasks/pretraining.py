"""The testbed's reference: a two-layer Llama that knows single operations, pretrained once and cached.

`python -m fe_posttrain.tasks.bases` builds it (about half a minute on one core) and prints the folder with
the exact success probability of every family.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from fe_posttrain.tasks import digits
from fe_posttrain.tasks.pretraining_run import PretrainSettings, pretrain, say
from fe_posttrain.tasks.tokenizer import build_tokenizer

PRETRAIN_VERSION = "1"  # changes when the same settings may give other weights
CACHE_VARIABLE = "FE_POSTTRAIN_CACHE"


def reference_model(cache_dir: Path | None = None, *, seed: int = 0, settings: PretrainSettings | None = None) -> Path:
    """Folder of the pretrained reference, loadable by `from_pretrained`; pretrains it when the cache has none.

    The folder's name carries a hash of all that determines the weights. It appears by one rename when it is
    complete, under a lock: processes that start together build it once, and a killed build leaves nothing that
    is taken for a model. The caller's random state stays as it is.

    Args:
        cache_dir: default $FE_POSTTRAIN_CACHE, else ~/.cache/fe_posttrain.
        seed: of weights and data.
        settings: default `PretrainSettings()`.
    """
    settings = settings or PretrainSettings()
    made_of = {"digits": digits.VERSION, "seed": seed, "settings": asdict(settings)}
    return cached("reference", made_of, lambda: pretrain(seed, settings), cache_dir)


def cached(kind: str, made_of: dict, train: Callable[[], torch.nn.Module], cache_dir: Path | None = None) -> Path:
    """Folder of a model of the testbed's tokenizer, in the cache of `reference_model` and as it says.

    Args:
        kind: what the folder's name begins with.
        made_of: all that determines the weights, beside torch and how pretraining goes; json.
        train: makes the model, where the cache has none.
    """
    cache = Path(cache_dir or os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "fe_posttrain")
    torch_version = ".".join(torch.__version__.split(".")[:2])
    recipe = {**made_of, "pretrain": PRETRAIN_VERSION, "torch": torch_version}
    name = f"{kind}-" + hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / name
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f".{name}.lock", kind):
        if not folder.is_dir():
            for leftover in cache.glob(f".{name}-*"):  # of killed builds: whoever holds the lock is alone
                shutil.rmtree(leftover)
            staging = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache))
            _build(staging, recipe, kind, train)
            staging.rename(folder)
    return folder


@contextmanager
def _locked(path: Path, kind: str):
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"waiting for another process that is pretraining the testbed {kind}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, recipe: dict, kind: str, train: Callable[[], torch.nn.Module]) -> None:
    """Pretrain on one CPU thread (more are slower at this size, and sum in another order) and save."""
    say(f"pretraining the testbed {kind}, once, into {folder.parent}")
    build_tokenizer().save_pretrained(folder)
    start, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = train()
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    (folder / "pretraining.json").write_text(json.dumps(recipe, indent=2) + "\n")
    folder.chmod(0o755)  # mkdtemp's folders are private
    say(f"pretrained the testbed {kind} in {time.monotonic() - start:.0f} s")

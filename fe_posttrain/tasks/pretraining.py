"""The testbed's reference: a two-layer Llama that knows single operations, pretrained once and cached.

`python -m fe_posttrain.tasks.pretraining` builds it (about half a minute on one core) and prints the folder with
the exact success probability of every family.
"""

import argparse
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


def main() -> None:
    """Build the base of one seed; print its folder and a table of exact success probabilities."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fe_posttrain.tasks.bases import BASES
    from fe_posttrain.tasks.exact import exact_probabilities

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", choices=BASES, default="testbed")
    words = parser.parse_args()
    folder = BASES[words.base](seed=words.seed)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    print(folder)
    print(f"{'family':10} {'letters':8} {'mean p':>9} {'log10 p: mean':>14} {'min':>7} {'max':>7}")
    for family in (digits.FAMILIES[name] for name in digits.measured((), words.base)):
        asked = digits.prompts(family.name, 128 * len(family.operations), seed=0, split="probe")
        p = exact_probabilities(model, tokenizer, asked)
        for i, letters in enumerate(family.operations):
            own = p[i :: len(family.operations)]
            low, mean, high = own.log10().min(), own.log10().mean(), own.log10().max()
            print(f"{family.name:10} {letters:8} {own.mean():9.5f} {mean:14.2f} {low:7.2f} {high:7.2f}")


if __name__ == "__main__":
    main()

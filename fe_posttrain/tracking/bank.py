"""The reference bank: the reference's draws of the probe prompts, made once, cached on disk, shared by all runs.

Two phases, because what is stopped when it looks good may only be judged by evidence that allows stopping:

* calls: `screen` draws of every prompt, then rounds for those that are neither IN nor OUT yet (e-BH over all prompts),
  until each is or has `most` draws. Read by e-values, which hold at any stopping time; the first `screen` draws, whose
  number is fixed, also as plain counts.
* deep: `most` fresh draws of every prompt that was not called IN, fixed in number and chosen by the first phase alone:
  what "created" is certified from.
"""

import hashlib
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock

from fe_posttrain.support.budgets import ALPHA, DELTA
from fe_posttrain.support.calls import IN, UNKNOWN, Evidence, membership
from fe_posttrain.whole_files import whole_file

logger = logging.getLogger(__name__)

VERSION = 1  # of the file and of how it is filled
ROUND = 16  # draws of a prompt between two looks
SAMPLES = 1024  # completions that are kept for the comparison of densities


@dataclass(frozen=True)
class Plan:
    """How much of the reference is drawn: see the module."""

    screen: int = 64
    most: int = 1024
    budget: int = 1024
    delta: float = DELTA
    alpha: float = ALPHA


@dataclass(frozen=True)
class Batch:
    """Draws of the reference at prompts `row` (n,): hits (n,), a label each or None, ids and ln ref of the first."""

    row: np.ndarray
    correct: np.ndarray
    labels: list[str | None]
    completion_ids: list[list[int]]
    log_probs: np.ndarray


class Bank:
    """Draws of the reference for `prompts` probe prompts.

    `hits` and `deep` (prompts, most) int8: 1, 0, or -1 where nothing was drawn, in draw order; `labels`: label ->
    (prompts,) counts among the first `screen` draws; `samples`: (row, ids, ln ref) of the first draws.
    """

    def __init__(self, prompts: int, plan: Plan):
        self.prompts, self.plan = prompts, plan
        most = max(plan.most, plan.screen)
        self.hits = np.full((prompts, most), -1, dtype=np.int8)
        self.deep = np.full((prompts, plan.most), -1, dtype=np.int8)
        self.labels: dict[str, np.ndarray] = {}
        self.samples: list[tuple[int, list[int], float]] = []

    @property
    def screened(self) -> np.ndarray:
        """(prompts, screen) hits of the draws that every prompt has."""
        return self.hits[:, : self.plan.screen]

    @property
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Correct and drawn of each prompt, both phases together: for e-values."""
        both = np.concatenate([self.hits, self.deep], axis=1)
        return (both == 1).sum(1), (both >= 0).sum(1)

    @property
    def call_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Correct and drawn of each prompt in the first phase."""
        return (self.hits == 1).sum(1), (self.hits >= 0).sum(1)

    @property
    def samples_correct(self) -> np.ndarray:
        """Whether each of `samples` is correct: they are the first draws of their prompt, in order."""
        rows = np.array([row for row, _, _ in self.samples])
        number = np.arange(len(rows)) - np.searchsorted(rows, rows)
        return self.hits[rows, number] == 1

    @property
    def deep_prompts(self) -> np.ndarray:
        """Indices of the prompts with a second phase."""
        return np.flatnonzero((self.deep >= 0).all(1))

    def membership(self) -> np.ndarray:
        """IN, OUT or UNKNOWN by the first phase."""
        evidence = Evidence.of_counts(*self.call_counts, self.plan.budget, self.plan.delta)
        return membership(evidence, self.plan.alpha)

    def fill(self, draw: Callable[..., Batch], save: Callable[[], None] = lambda: None) -> None:
        """Draw what is missing; each step depends on nothing but what is there, so a broken-off bank is continued.

        Args:
            draw: (rows, *seed) -> Batch; every process calls it.
            save: called after every round.
        """
        while (wanted := self._next_round()) is not None:
            rows, many = wanted
            start = int((self.hits[rows[0]] >= 0).sum())
            batch = draw(np.repeat(rows, many), "calls", start)
            self.hits[rows, start : start + many] = batch.correct.reshape(len(rows), many)
            if start == 0:
                self._keep(batch, many)
            save()
        rows = np.flatnonzero((self.membership() != IN) & (self.deep < 0).any(1))
        for i in range(0, len(rows), max(1, 65536 // self.plan.most)):
            some = rows[i : i + max(1, 65536 // self.plan.most)]
            batch = draw(np.repeat(some, self.plan.most), "deep", int(some[0]))
            self.deep[some] = batch.correct.reshape(len(some), self.plan.most)
            save()

    def _next_round(self) -> tuple[np.ndarray, int] | None:
        drawn = (self.hits >= 0).sum(1)
        if drawn.min() < self.plan.screen:
            return np.flatnonzero(drawn < self.plan.screen), self.plan.screen
        if (self.deep >= 0).any():  # the first phase is over: what it decided stands
            return None
        open_ = (self.membership() == UNKNOWN) & (drawn < self.hits.shape[1])
        if not open_.any():
            return None
        least = drawn[open_].min()
        return np.flatnonzero(open_ & (drawn == least)), min(ROUND, self.hits.shape[1] - int(least))

    def _keep(self, batch: Batch, many: int) -> None:
        for label in {label for label in batch.labels if label is not None}:
            named = np.array([found == label for found in batch.labels])
            self.labels[label] = np.bincount(batch.row[named], minlength=self.prompts)
        each = min(many, -(-SAMPLES // self.prompts))
        for i in range(len(batch.row)):
            if i % many < each:
                self.samples.append((int(batch.row[i]), batch.completion_ids[i], float(batch.log_probs[i])))

    def arrays(self) -> dict[str, np.ndarray]:
        """What a file holds; numbers and text only."""
        rows, ids, log_probs = zip(*self.samples, strict=True) if self.samples else ((), (), ())
        return {
            "hits": self.hits,
            "deep": self.deep,
            "label_names": np.array(list(self.labels), dtype=str),
            "label_counts": np.array(list(self.labels.values())).reshape(len(self.labels), self.prompts),
            "sample_rows": np.array(rows, dtype=np.int64),
            "sample_lengths": np.array([len(x) for x in ids], dtype=np.int64),
            "sample_ids": np.array([token for x in ids for token in x], dtype=np.int64),
            "sample_log_probs": np.array(log_probs, dtype=np.float64),
        }

    def load_arrays(self, kept: dict[str, np.ndarray]) -> None:
        """Take back what `arrays` gave."""
        self.hits, self.deep = kept["hits"], kept["deep"]
        self.labels = dict(zip(kept["label_names"].tolist(), kept["label_counts"], strict=True))
        ends = np.cumsum(kept["sample_lengths"])
        ids = [x.tolist() for x in np.split(kept["sample_ids"], ends[:-1])] if len(ends) else []
        self.samples = list(zip(kept["sample_rows"].tolist(), ids, kept["sample_log_probs"].tolist(), strict=True))


def cached(identity: dict[str, str], prompts: int, plan: Plan, draw: Callable[..., Batch], folder: Path) -> Bank:
    """The bank of `identity` (reference, decoding, verifier, prompts) from `folder`, filled by `draw` where need be.

    Files are replaced whole; of two runs that want the same bank one draws and the other waits; a run that is killed
    leaves what it had, and the next one goes on from there.
    """
    content = {"version": VERSION, **identity, **asdict(plan), "number": prompts}
    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
    path, state, bank = folder / f"{name}.npz", PartialState(), Bank(prompts, plan)
    lock = None
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{path}.lock")
        if not _taken(lock):
            logger.warning("support: another process draws the same reference bank; waiting for it (%s)", path)
            lock.acquire()
    try:
        kept = [_read(path) if state.is_main_process else None]
        kept = broadcast_object_list(kept)[0]
        if kept is not None:
            bank.load_arrays(kept)

        def save() -> None:
            if state.is_main_process:
                with whole_file(path) as file:
                    np.savez_compressed(file, **bank.arrays())

        bank.fill(draw, save)
    finally:
        if lock is not None:
            lock.release()
    return bank


def _taken(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0.1)
    except TimeoutError:
        return False
    return True


def _read(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile) as error:
        logger.warning("support: %s cannot be read (%s); the reference is drawn again", path, error)
        return None


def banks_folder() -> Path:
    """Where banks lie: `banks` in FE_POSTTRAIN_CACHE, default ~/.cache/fe_posttrain."""
    return Path(os.environ.get("FE_POSTTRAIN_CACHE", "~/.cache/fe_posttrain")).expanduser() / "banks"


def labelled(labels: Sequence[str | None] | None, count: int) -> list[str | None]:
    """One label each, None where there are none."""
    return list(labels) if labels is not None else [None] * count

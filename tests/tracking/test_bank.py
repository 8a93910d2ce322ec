"""The reference bank: what it stops at, and what survives on disk."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fe_posttrain.support.calls import IN, OUT
from fe_posttrain.tracking.bank import Bank, Batch, Plan, cached

P = np.array([0.99, 0.3, 0.0, 0.0])  # basin, tail, and two that the reference never answers
PLAN = Plan(screen=16, most=400, budget=64)
IDENTITY = {"reference": "a", "decoding": "b", "verifier": "c", "prompts": "d", "labels": ""}


def draw(rows: np.ndarray, *seed: object) -> Batch:
    """Draws that depend on the rows and the seed alone, as the real ones do."""
    rng = np.random.default_rng([sum(str(seed).encode()), len(rows), int(rows[0])])
    correct = rng.random(len(rows)) < P[rows]
    ids = [[int(row), int(hit)] for row, hit in zip(rows, correct, strict=True)]
    labels = ["right" if hit else None for hit in correct]
    return Batch(rows, correct, labels, ids, -np.arange(len(rows), dtype=float))


def filled() -> Bank:
    bank = Bank(len(P), PLAN)
    bank.fill(draw)
    return bank


def test_clear_prompts_take_few_draws_and_hard_ones_what_the_call_needs():
    bank = filled()
    assert bank.membership().tolist() == [IN, IN, OUT, OUT]
    correct, drawn = bank.call_counts
    assert drawn[:2].max() <= 48 and (correct[2:] == 0).all()
    # e-BH calls two of four OUT at 4/(alpha 2) = 40: N >= ln(40/.95)/-ln(1-p*) = 79.9, the next round of 16 after it
    assert drawn[2:].tolist() == [80, 80]


def test_the_deep_phase_is_fixed_in_number_and_for_what_was_not_called_in():
    bank = filled()
    assert bank.deep_prompts.tolist() == [2, 3]
    assert (bank.deep[[0, 1]] == -1).all() and (bank.deep[[2, 3]] == 0).all()
    assert bank.counts[1].tolist()[2:] == [480, 480]


def test_the_first_draws_are_kept_for_labels_and_densities():
    bank = filled()
    assert bank.labels["right"].tolist() == bank.screened.sum(1).tolist()
    assert [row for row, _, _ in bank.samples] == np.repeat(np.arange(4), 16).tolist()


def test_a_bank_on_disk_is_not_drawn_again(tmp_path):
    first = cached(IDENTITY, len(P), PLAN, draw, tmp_path)

    def never(*_):
        raise AssertionError("drawn again")

    again = cached(IDENTITY, len(P), PLAN, never, tmp_path)
    assert _same(first, again)
    with pytest.raises(AssertionError, match="drawn again"):
        cached(IDENTITY | {"reference": "another"}, len(P), PLAN, never, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "emptied", "one byte"])
def test_a_damaged_file_is_never_believed(tmp_path, caplog, damage):
    cached(IDENTITY, len(P), PLAN, draw, tmp_path)
    (path,) = tmp_path.glob("*.npz")
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:  # the middle of what "hits" was packed into
        member = archive.getinfo("hits.npy")
    content[member.header_offset + 60 + member.compress_size // 2] ^= 255
    path.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "one byte": content}[damage])
    assert _same(cached(IDENTITY, len(P), PLAN, draw, tmp_path), filled())
    assert "the reference is drawn again" in caplog.text


def _same(one: Bank, other: Bank) -> bool:
    mine, theirs = one.arrays(), other.arrays()
    return all(np.array_equal(mine[name], theirs[name]) for name in mine)


CHILD = f"""
import sys, time
sys.path[:0] = {[str(Path(__file__).parent)]!r}
from pathlib import Path
import test_bank as t
calls = []
def slow(rows, *seed):
    calls.append(seed)
    print("drawing", flush=True)
    time.sleep(0.15)
    return t.draw(rows, *seed)
bank = t.cached(t.IDENTITY, len(t.P), t.PLAN, slow, Path(sys.argv[1]))
print("done", len(calls), flush=True)
"""


def _start(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )


def test_of_two_processes_one_draws_and_both_have_it(tmp_path):
    both = [_start(tmp_path), _start(tmp_path)]
    said = [process.communicate(timeout=60)[0].splitlines()[-1] for process in both]
    assert sorted(said)[0] == "done 0" and sorted(said)[1].startswith("done ")
    assert _same(cached(IDENTITY, len(P), PLAN, draw, tmp_path), filled())


def test_a_killed_process_leaves_rounds_that_the_next_one_goes_on_from(tmp_path):
    process = _start(tmp_path)
    for _ in range(3):  # it is killed inside the third round
        assert process.stdout.readline() == "drawing\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=10)
    with np.load(next(tmp_path.glob("*.npz")), allow_pickle=False) as kept:
        assert (kept["hits"] >= 0).sum(1).max() == 32  # two whole rounds
    calls = []

    def counted(rows, *seed):
        calls.append(seed)
        return draw(rows, *seed)

    assert _same(cached(IDENTITY, len(P), PLAN, counted, tmp_path), filled())
    assert calls[0] == ("calls", 32)
    assert json.dumps(calls)  # plain seeds: the same in every process

"""The file that keeps the reference's log-probs: whole values or none, a bound, damage, several writers."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

from fe_posttrain.training import reference_cache
from fe_posttrain.training.reference_cache import ReferenceCache, cache_file

REFERENCE = b"r" * 32


def keys(first: int, count: int) -> list[bytes]:
    return [ReferenceCache.key_of(REFERENCE, str(i).encode()) for i in range(first, first + count)]


def value(i: int, length: int = 40) -> bytes:
    return np.arange(i, i + length, dtype="<f4").tobytes()


def rows(first: int, count: int, length: int = 40) -> dict[bytes, bytes]:
    return {key: value(i, length) for i, key in enumerate(keys(first, count), start=first)}


def assert_whole(found: dict[bytes, bytes], wanted: dict[bytes, bytes]) -> None:
    assert all(read == wanted[key] for key, read in found.items())


def test_what_was_written_is_read_by_another_run(tmp_path):
    ReferenceCache(tmp_path / "a" / "file", 1).write(rows(0, 5))
    found = ReferenceCache(tmp_path / "a" / "file", 1).read(keys(0, 7))
    assert set(found) == set(keys(0, 5))
    assert_whole(found, rows(0, 5))


def test_the_key_is_of_the_reference_and_of_the_row():
    key = ReferenceCache.key_of
    assert len({key(REFERENCE, b"row"), key(REFERENCE, b"row2"), key(b"s" * 32, b"row")}) == 3
    assert key(REFERENCE, b"row") == key(REFERENCE, b"row")


def test_reading_is_one_query(tmp_path):
    cache, said = ReferenceCache(tmp_path / "file", 1), []
    cache.write(rows(0, 64))
    cache._db.set_trace_callback(said.append)
    assert len(cache.read(keys(0, 64))) == 64
    assert len(said) == 1 and said[0].startswith("SELECT")


def test_the_bound_holds_and_what_was_used_longest_ago_goes_first(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(reference_cache.time, "time", lambda: clock[0])
    path, mib = tmp_path / "file", 0.3
    cache = ReferenceCache(path, mib)
    cache.write(rows(0, 100, 256))
    clock[0] += reference_cache.GRAIN
    cache.write(rows(100, 100, 256))
    clock[0] += reference_cache.GRAIN
    assert len(cache.read(keys(0, 50))) == 50  # used again: younger than 100 to 199 now
    cache.write(rows(200, 80, 256))
    assert path.stat().st_size <= mib * 2**20
    left = cache.read(keys(0, 280))
    assert set(keys(0, 50)) <= set(left) and set(keys(200, 80)) <= set(left)
    assert not set(keys(50, 50)) & set(left) and 0 < len(set(keys(100, 100)) & set(left)) < 100
    for i in range(20):
        cache.write(rows(1000 + 100 * i, 100, 256))
        assert path.stat().st_size <= mib * 2**20
    ReferenceCache(path, mib / 2)  # a smaller bound than that of the run before
    assert path.stat().st_size <= mib / 2 * 2**20


def test_a_batch_larger_than_the_bound_is_not_kept(tmp_path):
    cache = ReferenceCache(tmp_path / "file", 0.1)
    cache.write(rows(0, 4, 2**16))
    assert cache.read(keys(0, 4)) == {} and (tmp_path / "file").stat().st_size <= 0.1 * 2**20


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from test_reference_cache import *
cache, first = ReferenceCache(Path(sys.argv[1]), 64), int(sys.argv[2])
print("writing", flush=True)
for i in range(int(sys.argv[4])):
    cache.write(rows(first + 10 * i, 10, 50))
"""


def writer(path, first: int, count: int) -> subprocess.Popen:
    here = os.path.dirname(__file__)
    words = [sys.executable, "-c", WRITER, str(path), str(first), here, str(count)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("wait", [0.02, 0.1, 0.3])
def test_a_writer_that_is_killed_leaves_whole_values(tmp_path, wait, caplog):
    path = tmp_path / "file"
    process = writer(path, 0, 10**6)
    cache = ReferenceCache(path, 64)
    deadline = time.monotonic() + 20
    while not cache.read(keys(0, 10)) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = ReferenceCache(path, 64).read(keys(0, 30_000))  # far from the bound, however long it took to look
    assert len(found) >= 10 and len(found) % 10 == 0  # whole transactions
    assert_whole(found, rows(0, 30_000, 50))
    cache.write(rows(10**6, 3))
    assert len(cache.read(keys(10**6, 3))) == 3
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not caplog.records


def test_two_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "file"
    both = [writer(path, first, 60) for first in (0, 300)]  # the second half of one is the first half of the other
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    found = ReferenceCache(path, 64).read(keys(0, 900))
    assert len(found) == 900
    assert_whole(found, rows(0, 900, 50))


def damage_header(path):
    path.write_bytes(b"not a database" * 100)


def damage_pages(path):
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def damage_value(path):
    db = sqlite3.connect(path)
    db.execute("UPDATE log_probs SET log_probs = zeroblob(160) WHERE rowid = 3")
    db.commit()


@pytest.mark.parametrize(
    ("when", "spoil"),
    [
        ("before a run", damage_header),
        ("before a run", damage_pages),
        ("before a run", damage_value),
        ("during one", damage_header),
        ("during one", damage_value),
    ],
)
def test_a_damaged_file_is_put_aside_with_a_warning_and_made_anew(tmp_path, caplog, spoil, when):
    path = tmp_path / "file"
    cache = ReferenceCache(path, 1)
    cache.write(rows(0, 50))
    if when == "before a run":
        cache._close()
    spoil(path)
    with caplog.at_level(logging.WARNING, logger="fe_posttrain"):
        cache = ReferenceCache(path, 1) if when == "before a run" else cache
        assert cache.read(keys(0, 50)) == {}
    (said,) = [record.getMessage() for record in caplog.records]
    assert f"{path} is damaged" in said and "file.damaged" in said
    assert (tmp_path / "file.damaged").exists()
    cache.write(rows(0, 50))
    assert_whole(cache.read(keys(0, 50)), rows(0, 50))


def test_a_file_that_another_process_put_aside_is_opened_anew(tmp_path):
    ours, theirs = ReferenceCache(tmp_path / "file", 1), ReferenceCache(tmp_path / "file", 1)
    damage_header(tmp_path / "file")
    theirs.read(keys(0, 1))
    theirs.write(rows(0, 5))
    assert len(ours.read(keys(0, 5))) == 5
    (tmp_path / "file").unlink()
    assert ours.read(keys(0, 5)) == {}


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("FE_POSTTRAIN_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ValueError, match=r"reference_cache_mib: .*taken/log_probs/reference_v1.sqlite cannot be used"):
        ReferenceCache(cache_file(), 1)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"name another folder in FE_POSTTRAIN_CACHE, or write reference_cache_mib: 0"):
        ReferenceCache(tmp_path / "folder", 1)

"""Log-probs of the reference, kept on disk for all runs: one SQLite file of bounded size, safe to kill and share."""

import hashlib
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

logger = logging.getLogger(__name__)

WAIT = 60.0  # seconds for another process's transaction
GRAIN = 3600  # seconds within which uses count as simultaneous, so that reading rarely writes
SHARE = 16  # one in so many entries goes at a time when room is needed
MIB = 2**20

_TABLE = """
CREATE TABLE IF NOT EXISTS log_probs (
    key BLOB PRIMARY KEY, used INTEGER NOT NULL, checksum INTEGER NOT NULL, log_probs BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON log_probs (used);
"""


class _Damaged(Exception):
    """The file is not what this class wrote."""


class ReferenceCache:
    """Key -> float32 log-probs of one demonstration's trained tokens under one reference.

    A key is `key_of(reference, row)`: of the reference's weights and of the row's token ids and labels, which cover
    the tokenizer and the chat template. Every value lies in a transaction and under a checksum, so that a process
    that is killed leaves whole values or none. Above `mib` the entries used longest ago go first.

    Args:
        path: the file; it is made where it is missing.
        mib: its largest size after a write, in MiB.

    Raises:
        ValueError: the file cannot be written (also by `read` and `write`). One that is damaged is put aside with a
            warning, and made anew.
    """

    def __init__(self, path: Path, mib: float):
        self.path, self.limit = path, int(mib * MIB)
        self._db: sqlite3.Connection | None = None
        self._file: int | None = None  # the inode that is open: another process may put the file aside
        self._do(lambda db: self._write(db, []))

    @staticmethod
    def key_of(reference: bytes, row: bytes) -> bytes:
        """16 bytes that stand for both."""
        return hashlib.blake2b(row, digest_size=16, key=reference).digest()

    def read(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """What is known of `keys`, by one query: float32, little-endian."""
        return self._do(lambda db: self._read(db, keys)) if keys else {}

    def write(self, rows: dict[bytes, bytes]) -> None:
        """Keep `rows`, in one transaction; older ones make room."""
        now = _now()
        values = [(key, now, zlib.crc32(value, zlib.crc32(key)), value) for key, value in rows.items()]
        self._do(lambda db: self._write(db, values))

    @staticmethod
    def _read(db: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, bytes]:
        marks = ",".join("?" * len(keys))
        rows = db.execute(f"SELECT key, used, checksum, log_probs FROM log_probs WHERE key IN ({marks})", keys)
        found, old, now = {}, [], _now()
        for key, used, checksum, value in rows.fetchall():
            if zlib.crc32(value, zlib.crc32(key)) != checksum:
                raise _Damaged("a checksum does not fit its value")
            found[key] = value
            if used != now:
                old.append((now, key))
        if old:
            with _transaction(db):
                db.executemany("UPDATE log_probs SET used = ? WHERE key = ?", old)
        return found

    def _write(self, db: sqlite3.Connection, values: list[tuple]) -> None:
        with _transaction(db):
            db.executemany("INSERT OR REPLACE INTO log_probs VALUES (?, ?, ?, ?)", values)
            while self._size(db) > self.limit:
                count = db.execute("SELECT count(*) FROM log_probs").fetchone()[0]
                if count == 0:
                    break
                oldest = "SELECT rowid FROM log_probs ORDER BY used, rowid LIMIT ?"
                db.execute(f"DELETE FROM log_probs WHERE rowid IN ({oldest})", [count // SHARE + 1])

    @staticmethod
    def _size(db: sqlite3.Connection) -> int:
        """Bytes of the file once the transaction is over: free pages are cut off then (auto_vacuum)."""
        pages, free, size = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size

    def _do(self, work: Callable):
        """`work` on the open file; once more on a new one, if this one is damaged."""
        try:
            try:
                return work(self._connection())
            except (_Damaged, sqlite3.DatabaseError) as error:
                if not _is_damage(error):
                    raise
                self._put_aside(error)
                return work(self._connection())
        except (OSError, sqlite3.OperationalError) as error:
            raise ValueError(
                f"reference_cache_mib: {self.path} cannot be used ({error}); log-probs of the reference are kept "
                "there; make room or make it writable, name another folder in FE_POSTTRAIN_CACHE, or write "
                "reference_cache_mib: 0"
            ) from error

    def _connection(self) -> sqlite3.Connection:
        """The file that is at `path` now, opened."""
        if self._db is not None and self._file == _inode(self.path):
            return self._db
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._close()
        with FileLock(f"{self.path}.lock"):
            self._db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            # What may be lost with the power is made again; a killed process loses nothing in either mode.
            self._db.executescript("PRAGMA synchronous = OFF; PRAGMA auto_vacuum = FULL;" + _TABLE)
            self._file = _inode(self.path)
        return self._db

    def _put_aside(self, error: Exception) -> None:
        """Rename the damaged file, unless another process has done so."""
        aside = self.path.with_name(f"{self.path.name}.damaged")
        with FileLock(f"{self.path}.lock"):
            if self._file is None or self._file == _inode(self.path):
                logger.warning("%s is damaged (%s); it is now %s, and is made anew", self.path, error, aside.name)
                Path(f"{self.path}-journal").unlink(missing_ok=True)
                os.replace(self.path, aside)
        self._close()

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = self._file = None


def _transaction(db: sqlite3.Connection):
    """Commits at its end, rolls back on an error; waits for other writers at its beginning."""
    db.execute("BEGIN IMMEDIATE")
    return db


def _is_damage(error: Exception) -> bool:
    codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(error, _Damaged) or (getattr(error, "sqlite_errorcode", 0) & 0xFF) in codes


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def _now() -> int:
    return int(time.time() // GRAIN)


def cache_file() -> Path:
    """Where it lies: `log_probs` in FE_POSTTRAIN_CACHE, default ~/.cache/fe_posttrain."""
    folder = Path(os.environ.get("FE_POSTTRAIN_CACHE", "~/.cache/fe_posttrain")).expanduser()
    return folder / "log_probs" / "reference_v1.sqlite"

"""On-disk cache of resized images, so that stage resize decodes an image only once.

An image is identified by a key: a hash of its source's bytes, the settings and the decoder. The
shards are hard links of those in data/images, which take no extra space while both exist. An
SQLite index maps each key to a shard, a member and the metadata for the image's records; refusals
are cached as well. The whole cache may be deleted at any time: whatever is missing or damaged is
decoded again.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stages.core.errors import InputError
from stages.corpus.dataset.image_store import MemberLocation, list_shard, read_location

_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL,"
    " stamp TEXT NOT NULL, used INTEGER NOT NULL) STRICT;\n"
    "CREATE TABLE IF NOT EXISTS images (key TEXT PRIMARY KEY, shard TEXT, member TEXT NOT NULL,"
    " facts TEXT NOT NULL) STRICT, WITHOUT ROWID;\n"
    "CREATE INDEX IF NOT EXISTS images_of_shard ON images (shard);\n"
)
_INSERT_SHARD: Final = "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)"
_INSERT_IMAGE: Final = "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)"
_LOCK_TIMEOUT: Final = 60.0
"""Seconds to wait for another stage that writes to the index."""
_KEYS_PER_QUERY: Final = 500
_LISTED_SHARDS: Final = 64
"""Shards whose member locations are kept in memory."""


@dataclass(frozen=True)
class CachedImage:
    """Cached result of an image: `facts` for its records, and where its file lies.

    A refusal has no shard; its facts are `why` and `reason`.
    """

    facts: dict[str, Any]
    shard: str | None
    member: str


class ImageCache:
    """Cache folder, shared by the threads of a stage and by stages that run at the same time.

    A cache that cannot be used never stops a stage: it is disabled with a message.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit`: bytes of shards; beyond it the least recently used ones are deleted."""
        self._folder = folder
        self._limit = limit
        self._shards = folder / "shards"
        # the threads share one connection, which only one may use at a time; reentrant, because
        # methods that hold the lock call each other
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._locations: dict[str, dict[str, MemberLocation]] = {}
        # number of this run among all that used the cache: its "time" of last use
        self._run = 0
        with self._disable_on_error():
            self._shards.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                folder / "index.sqlite",
                timeout=_LOCK_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.executescript(_SCHEMA)
            shard_count, self._run = self._connection.execute(
                "SELECT count(*), coalesce(max(used), 0) + 1 FROM shards"
            ).fetchone()
            if not shard_count:  # shards of a lost index: the limit would never count them
                for path in self._shards.iterdir():
                    path.unlink(missing_ok=True)

    def close(self) -> None:
        """Enforce the limit and close the index."""
        self._trim()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def lookup(self, keys: Sequence[str]) -> dict[str, CachedImage]:
        """Key -> cached result, for those of the keys that are in the cache."""
        images: dict[str, CachedImage] = {}
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            batch = keys[start : start + _KEYS_PER_QUERY]
            placeholders = ",".join("?" * len(batch))
            query = f"SELECT key, shard, member, facts FROM images WHERE key IN ({placeholders})"  # noqa: S608
            for key, shard, member, facts in self._select(query, batch):
                images[key] = CachedImage(json.loads(facts), shard, member)
        return images

    def read(self, image: CachedImage) -> bytes | None:
        """File of an image; None if it is missing or damaged."""
        assert image.shard is not None, "a refusal has no file"
        try:
            return read_location(self._list(image.shard)[image.member], image.member)
        except (InputError, KeyError):
            self._delete_shard(image.shard)
            return None

    def link_shard(self, name: str, target: Path) -> bool:
        """Link a whole shard to `target`; False if it is missing or damaged.

        The shard is read and checked only if its file was touched since it was cached.
        """
        rows = self._select("SELECT stamp FROM shards WHERE name = ?", [name])
        if not rows:
            return False
        path = self._shards / name
        try:
            if _stamp(path) != rows[0][0]:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise zipfile.BadZipFile
            _link(path, target)
        except (OSError, zipfile.BadZipFile):
            self._delete_shard(name)
            return False
        update = "UPDATE shards SET used = ?, stamp = ? WHERE name = ?"
        self._transact([(update, [(self._run, _stamp(path), name)])])
        return True

    def add_shard(self, path: Path, images: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
        """Add a shard that was just written, with the (key, member, facts) of its images."""
        size = path.stat().st_size
        if size > self._limit:
            return
        rows = [(key, path.name, member, json.dumps(facts)) for key, member, facts in images]
        with self._disable_on_error():
            # Rows before the file: if the stage is killed in between, rows without a file are
            # noticed on use, while a file without a row would never be deleted.
            shard_row = (path.name, size, _stamp(path), self._run)
            self._transact([(_INSERT_SHARD, [shard_row]), (_INSERT_IMAGE, rows)])
            if self._connection:
                with suppress(FileExistsError):
                    _link(path, self._shards / path.name)
        self._trim()

    def add_refusals(self, refusals: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Add the (key, facts) of images that cannot be used."""
        rows = [(key, None, "", json.dumps(facts)) for key, facts in refusals]
        self._transact([(_INSERT_IMAGE, rows)])

    def _trim(self) -> None:
        """Delete the least recently used shards until the cache is within its limit."""
        with self._disable_on_error():
            shards = self._select("SELECT name, bytes FROM shards ORDER BY used, name")
            excess = sum(size for _, size in shards) - self._limit
            for name, size in shards:
                if excess <= 0:
                    break
                self._delete_shard(name)
                excess -= size

    def _list(self, shard: str) -> dict[str, MemberLocation]:
        """Member locations of a shard; sorted image names need only the last few shards."""
        with self._lock:
            if shard not in self._locations:
                while len(self._locations) >= _LISTED_SHARDS:
                    del self._locations[next(iter(self._locations))]
                self._locations[shard] = list_shard(self._shards / shard)
            return self._locations[shard]

    def _delete_shard(self, name: str) -> None:
        with self._lock:
            self._locations.pop(name, None)
        self._transact(
            [
                ("DELETE FROM images WHERE shard = ?", [(name,)]),
                ("DELETE FROM shards WHERE name = ?", [(name,)]),
            ]
        )
        with self._disable_on_error():
            (self._shards / name).unlink(missing_ok=True)

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows; none if the cache is disabled."""
        with self._disable_on_error():
            if self._connection is not None:
                return self._connection.execute(query, values).fetchall()
        return []

    def _transact(self, statements: Sequence[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        """Execute each (statement, rows of values) in one transaction."""
        with self._disable_on_error():
            if self._connection is None:
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, rows in statements:
                    self._connection.executemany(statement, rows)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _disable_on_error(self) -> Iterator[None]:
        """Hold the lock; on an error of SQLite or the disk, disable the cache from then on."""
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                # OperationalError (locked, disk full, ...) does not mean that the index is corrupt
                if isinstance(error, sqlite3.DatabaseError) and not isinstance(
                    error, sqlite3.OperationalError
                ):
                    _delete_index(self._folder / "index.sqlite")
                print(
                    f"{self._folder} cannot be used ({error}): images are decoded without a cache",
                    file=sys.stderr,
                )
                if self._connection is not None:
                    with suppress(sqlite3.Error):
                        self._connection.close()
                self._connection = None


def _delete_index(index: Path) -> None:
    """Delete a corrupt index and its shards, which are useless without it."""
    for suffix in ("", "-wal", "-shm"):
        index.with_name(index.name + suffix).unlink(missing_ok=True)
    shutil.rmtree(index.parent / "shards", ignore_errors=True)


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _link(source: Path, target: Path) -> None:
    """Hard link, or a copy with the same times where the file systems allow no link."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        if not source.exists():
            raise
        shutil.copy2(source, target)

"""What stage resize made before, so that it is not made again: shards of images, and for each image
what it was made from.

An image is known by a key, a hash of its source's bytes, of the settings and of the decoder. The
shards are those of data/images under another link, so that they take no room twice as long as both
are there; an SQLite file says which image lies in which, and what its records get to know of it. A
refusal is kept as well. All of it may be deleted at any time: what is not found, or not whole, is
made anew.
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

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS shards (name TEXT PRIMARY KEY, bytes INTEGER NOT NULL, stamp TEXT NOT NULL, used INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS images (key TEXT PRIMARY KEY, shard TEXT, member TEXT NOT NULL, facts TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS images_of_shard ON images (shard);
"""
_PATIENCE: Final = 60.0
"""Seconds that another stage, which writes, is waited for."""
_ASKED: Final = 500
"""Keys in one question."""
_LISTED: Final = 64
"""Shards whose images' places are in memory."""


@dataclass(frozen=True)
class Known:
    """What was made of an image: `facts` for its records, and where its file lies; a refusal has no
    shard.
    """

    facts: dict[str, Any]
    shard: str | None
    member: str


class ImageCache:
    """A folder with what was made before, for one stage at a time or several beside each other.
    Nothing it meets stops a stage.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """`limit`: bytes of shards, beyond which those go that were not used for longest."""
        self._folder, self._limit = folder, limit
        self._shards = folder / "shards"
        # threads share the one connection, which bears one of them at a time; steps are nested
        self._turn = threading.RLock()
        self._open: sqlite3.Connection | None = None
        self._listed: dict[str, dict[str, MemberLocation]] = {}
        self._run = 0
        with self._tried():
            self._shards.mkdir(parents=True, exist_ok=True)
            self._open = sqlite3.connect(
                folder / "index.sqlite",
                timeout=_PATIENCE,
                isolation_level=None,
                check_same_thread=False,
            )
            self._open.execute("PRAGMA journal_mode = WAL")
            self._open.execute("PRAGMA synchronous = NORMAL")
            self._open.executescript(_TABLES)
            held, self._run = self._open.execute(
                "SELECT count(*), coalesce(max(used), 0) + 1 FROM shards"
            ).fetchone()
            if not held:  # files that a lost index knew would be counted by nobody
                for left in self._shards.iterdir():
                    left.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep to the limit, and let go of the files."""
        self._trim()
        if self._open is not None:
            self._open.close()
            self._open = None

    def known(self, keys: Sequence[str]) -> dict[str, Known]:
        """Key -> what was made of that image, of those that were met before."""
        found: dict[str, Known] = {}
        with self._tried():
            for start in range(0, len(keys) if self._open else 0, _ASKED):
                asked = keys[start : start + _ASKED]
                question = f"SELECT key, shard, member, facts FROM images WHERE key IN ({','.join('?' * len(asked))})"  # noqa: S608
                for key, shard, member, facts in self._rows(question, asked):
                    found[key] = Known(json.loads(facts), shard, member)
        return found

    def read(self, known: Known) -> bytes | None:
        """The file of an image; None if it is gone, or damaged."""
        assert known.shard is not None, "a refusal has no file"
        try:
            return read_location(self._places(known.shard)[known.member], known.member)
        except (InputError, KeyError):
            self._forget(known.shard)
            return None

    def take(self, shard: str, target: Path) -> bool:
        """Put a whole shard, if there is one of that name, at `target`. It is read only if its file
        was touched since.
        """
        row = self._one("SELECT stamp FROM shards WHERE name = ?", [shard])
        if row is None:
            return False
        path = self._shards / shard
        try:
            if _stamp(path) != row[0]:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise zipfile.BadZipFile
            _link(path, target)
        except (OSError, zipfile.BadZipFile):
            self._forget(shard)
            return False
        self._write(
            [
                (
                    "UPDATE shards SET used = ?, stamp = ? WHERE name = ?",
                    [(self._run, _stamp(path), shard)],
                )
            ]
        )
        return True

    def keep(self, path: Path, images: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
        """Keep a shard that was just written, with the (key, member, facts) of its images."""
        size = path.stat().st_size
        if size > self._limit:
            return
        rows = [(key, path.name, member, json.dumps(facts)) for key, member, facts in images]
        with self._tried():
            # the row first: a kill then leaves a row whose file is missing, which is found out, and
            # no file without a row, which is not
            self._write(
                [
                    (
                        "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)",
                        [(path.name, size, _stamp(path), self._run)],
                    ),
                    ("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", rows),
                ]
            )
            if self._open:
                with suppress(FileExistsError):
                    _link(path, self._shards / path.name)
        self._trim()

    def keep_refusals(self, refusals: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Keep that images of these keys cannot be used, and why."""
        rows = [(key, None, "", json.dumps(facts)) for key, facts in refusals]
        self._write([("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", rows)])

    def _trim(self) -> None:
        """Drop shards, those first that were not used for longest, until the limit is kept."""
        held = self._one("SELECT coalesce(sum(bytes), 0) FROM shards", [])
        over = (held[0] if held else 0) - self._limit
        if over <= 0:
            return
        with self._tried():
            for name, size in list(
                self._rows("SELECT name, bytes FROM shards ORDER BY used, name", [])
            ):
                if over <= 0:
                    break
                self._forget(name)
                over -= size

    def _places(self, shard: str) -> dict[str, MemberLocation]:
        """Where the images of a shard lie; the last few shards are kept listed, as names in order
        come from a few of them.
        """
        with self._turn:
            if shard not in self._listed:
                while len(self._listed) >= _LISTED:
                    del self._listed[next(iter(self._listed))]
                self._listed[shard] = list_shard(self._shards / shard)
            return self._listed[shard]

    def _forget(self, shard: str) -> None:
        with self._turn:
            self._listed.pop(shard, None)
        self._write(
            [
                ("DELETE FROM images WHERE shard = ?", [(shard,)]),
                ("DELETE FROM shards WHERE name = ?", [(shard,)]),
            ]
        )
        with self._tried():
            (self._shards / shard).unlink(missing_ok=True)

    def _rows(self, question: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        return iter(self._open.execute(question, values) if self._open else ())

    def _one(self, question: str, values: Sequence[Any]) -> tuple[Any, ...] | None:
        with self._tried():
            return next(self._rows(question, values), None)
        return None

    def _write(self, changes: Sequence[tuple[str, Sequence[Sequence[Any]]]]) -> None:
        with self._tried():
            if self._open is None:
                return
            self._open.execute("BEGIN IMMEDIATE")
            try:
                for change, rows in changes:
                    self._open.executemany(change, rows)
            except BaseException:
                self._open.execute("ROLLBACK")
                raise
            self._open.execute("COMMIT")

    @contextmanager
    def _tried(self) -> Iterator[None]:
        """Whatever is wrong with the cache, it is done without from then on."""
        with self._turn:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, sqlite3.DatabaseError) and not isinstance(
                    error, sqlite3.OperationalError
                ):
                    _set_aside(self._folder / "index.sqlite")
                print(
                    f"{self._folder} cannot be used ({error}): images are made anew",
                    file=sys.stderr,
                )
                if self._open is not None:
                    with suppress(sqlite3.Error):
                        self._open.close()
                self._open = None


def _set_aside(index: Path) -> None:
    """Remove a damaged index, so that the next stage begins a new one; its shards are of no use
    without it.
    """
    for path in (index, index.with_name(index.name + "-wal"), index.with_name(index.name + "-shm")):
        path.unlink(missing_ok=True)
    shutil.rmtree(index.parent / "shards", ignore_errors=True)


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy, with its times, where the file system has no links,
    or `target` is on another one.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        if not source.exists():
            raise
        shutil.copy2(source, target)

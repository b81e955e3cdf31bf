"""A file from anywhere, by transfers that go on where they were stopped.

    med-r1 fetch-file https://example.org/corpus.zip data/raw/corpus.zip --sha256 9f86d0...

Whatever fsspec opens: file, http(s), s3, gs, ssh. What has come lies in `<target>.part`;
`<target>.part.json` says of which state of the source it is, and how much of it is on the disk for
certain. A transfer that was stopped, or killed, goes on from there if the source is still the same,
and begins anew if it is not, or if its server gives no parts of files. `target` is there only when
all of it is.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from stages.core.disk_space import find_shortages
from stages.core.errors import DiskFullError, InputError
from stages.core.file_lock import exclusive_lock
from stages.core.iteration.progress import progress_reporter
from stages.core.outputs import write_json

ATTEMPTS: Final = 6
"""Tries without a byte of progress before a transfer is given up."""
PAUSE: Final = 1.0
"""Seconds before the second try; twice as long before each one after it."""
BLOCK: Final = 4 * 2**20
"""Bytes asked for at a time."""
SAFE: Final = 16 * 2**20
"""Bytes after which what has come is forced onto the disk: as much is fetched again after a kill or
a power cut, at most.
"""
RESERVE: Final = 64 * 2**20
"""Bytes that are left free on the disk."""

Result = TypeVar("Result")

_MIB: Final = 2**20
_TELLING: Final = (
    "ETag",
    "etag",
    "Content-MD5",
    "checksum",
    "md5",
    "md5Hash",
    "crc32c",
    "generation",
    "version_id",
    "VersionId",
)
_TIMES: Final = ("mtime", "Last-Modified", "LastModified", "last_modified", "updated")


class Checksum(NamedTuple):
    """What the whole file must hash to, in hex."""

    kind: Literal["sha256", "md5"]
    digest: str


@dataclass(frozen=True)
class _State:
    """Which version of the source was fetched, and how many bytes of it are safely on disk."""

    source: str
    size: int | None
    identity: dict[str, str]
    done: int
    placed: str = ""
    """Once all has come: what tells the file that it became from every other."""

    def same(self, other: _State) -> bool:
        """Is it the same state of the same source."""
        return (self.source, self.size, self.identity) == (other.source, other.size, other.identity)


class _ChangedError(Exception):
    """The source is not what it was when the transfer began."""


class _NoPartsError(Exception):
    """The server gives files from their beginning only."""


def fetch(
    files: Any, address: str, target: Path, checksum: Checksum | None = None, *, noted: bool = False
) -> None:
    """Fetch `address` from the fsspec file system `files` to `target`, or go on with it.

    Raises InputError if the source is not there, may not be read, gives up, or is not what
    `checksum` says; if another process is at it; if the disk is too small. What was there at
    `target` stays until all has come. `noted`: what was fetched stays noted beside it, until
    `forget`; asked for again, it is not fetched again while source and target stay as they are.
    """
    transfer = _Transfer(files, address, target)

    def busy(_: str) -> InputError:
        return InputError(f"another process is fetching to {transfer.part}: wait until it ends")

    with exclusive_lock(transfer.part, on_conflict=busy), transfer.part.open("r+b") as out:
        if noted and _with_patience(transfer, transfer.is_there):
            transfer.part.unlink()
            return
        _with_patience(transfer, lambda: transfer.run(out))
        if checksum and (found := _digest(transfer.part, checksum.kind)) != checksum.digest.lower():
            forget(target)
            transfer.part.unlink()
            raise InputError(
                f"{transfer.name} has {checksum.kind} {found}, not {checksum.digest}: it is not the"
                " file that was meant; what came of it is deleted"
            )
        transfer.place()
    if not noted:
        forget(target)


def forget(target: Path) -> None:
    """Drop what was noted of a transfer to `target`."""
    _note(target).unlink(missing_ok=True)


class _Transfer:
    """One source and what has come of it."""

    def __init__(self, files: Any, address: str, target: Path) -> None:
        self.files, self.address, self.target = files, address, target
        self.part = target.with_name(f"{target.name}.part")
        self.name = _public(address)
        self.done = 0
        self._note = _note(target)
        self._parts = True

    def is_there(self) -> bool:
        """Is the target what was fetched last, and the source still the same."""
        before = self._state()
        now = self._look()
        return bool(
            before
            and before.placed
            and before.placed == _stamp(self.target)
            and before.same(now)
            and now.identity
        )

    def place(self) -> None:
        """Put what has come in the target's place."""
        state = self._state()
        assert state is not None, "noted when the last byte had come"
        write_json(self._note, asdict(replace(state, placed=_stamp(self.part))))
        self.part.replace(self.target)

    def run(self, out: IO[bytes]) -> None:
        """Go on until all is there."""
        now = self._look()
        before = self._state()
        certain = before.done if before and before.same(now) and now.identity and self._parts else 0
        self.done = min(certain, out.seek(0, os.SEEK_END))
        out.truncate(self.done)
        self._check_space(now)
        self._receive(out, now)
        if now.size is not None and self.done != now.size:
            raise EOFError(f"{self.done} bytes of {now.size} came")
        if self._look() != now:
            raise _ChangedError(f"{self.name} changed while it was fetched")

    def _receive(self, out: IO[bytes], now: _State) -> None:
        out.seek(self.done)
        self._remember(out, now)
        certain = self.done
        report = progress_reporter(
            f"fetching {self.part.stem}", (now.size or 0) // _MIB, "MiB", done=self.done // _MIB
        )
        for block in self._blocks(now.size):
            out.write(block)
            self.done += len(block)
            report(self.done // _MIB, "")
            if self.done - certain >= SAFE:
                self._remember(out, now)
                certain = self.done
        self._remember(out, now)

    def _blocks(self, size: int | None) -> Iterator[bytes]:
        """The source from `self.done` on, in one request a block where parts are given."""
        if size is not None and self.done >= size:
            return
        with self.files.open(self.address, "rb", block_size=BLOCK if self._parts else 0) as source:
            try:
                source.seek(self.done)
                while block := source.read(BLOCK):
                    yield block
            except ValueError as error:
                # as fsspec says that a server does not give the part it was asked for
                if self._parts:
                    raise _NoPartsError from error
                raise

    def _look(self) -> _State:
        """What the source is now."""
        self.files.invalidate_cache()
        info = self.files.info(self.address)
        if info.get("type") == "directory":
            raise InputError(f"{self.name} is a folder: only single files are fetched so")
        telling = {key: str(info[key]) for key in _TELLING if info.get(key)}
        return _State(
            hashlib.sha256(self.address.encode()).hexdigest(),
            None if info.get("size") is None else int(info["size"]),
            telling or {key: str(info[key]) for key in _TIMES if info.get(key)},
            0,
        )

    def _state(self) -> _State | None:
        """What was noted; None if nothing was, or nothing that can be used."""
        try:
            found = _State(**json.loads(self._note.read_text(encoding="utf-8")))
            return found if isinstance(found.done, int) and found.done >= 0 else None
        except (OSError, ValueError, TypeError):
            return None

    def _remember(self, out: IO[bytes], now: _State) -> None:
        out.flush()
        os.fsync(out.fileno())
        write_json(self._note, asdict(now) | {"done": self.done})

    def _check_space(self, now: _State) -> None:
        missing = (now.size or 0) - self.done
        for _, needed, free in find_shortages({self.part.parent: missing}, RESERVE):
            raise DiskFullError(
                f"{self.name} needs {needed / _MIB:.0f} MiB more in {self.part.parent}/, which has"
                f" {free / _MIB:.0f} MiB free: free some space (`dvc gc --workspace` drops old"
                " results) and run again; what has come is kept"
            )

    def without_parts(self) -> None:
        """From now on from the beginning, in one stream."""
        self._parts = False


def _with_patience(transfer: _Transfer, run: Callable[[], Result]) -> Result:
    """Try until it is done, or until ATTEMPTS in a row brought nothing."""
    failed, reached = 0, -1
    while True:
        try:
            return run()
        except _NoPartsError:
            transfer.without_parts()
            print(
                f"{transfer.name}: its server gives no parts of files: fetched from the beginning,"
                " in one piece",
                file=sys.stderr,
            )
            continue
        except InputError:
            raise
        except Exception as error:
            _refuse_lasting(transfer.name, error)
            failed = (
                1
                if transfer.done > reached and not isinstance(error, _ChangedError)
                else failed + 1
            )
            reached = max(reached, transfer.done)
            if failed >= ATTEMPTS:
                raise InputError(
                    f"{transfer.name} cannot be fetched ({_said(error)}), tried {failed} times;"
                    f" {transfer.done / _MIB:.1f} MiB have come and are kept: run again to go on"
                ) from error
            pause = PAUSE * 2 ** (failed - 1)
            print(
                f"{transfer.name}: {_said(error)}; tried again in {pause:g} s, from"
                f" {transfer.done / _MIB:.1f} MiB on",
                file=sys.stderr,
            )
            time.sleep(pause)


def _refuse_lasting(name: str, error: Exception) -> None:
    """Raise what no patience mends: nothing there, no right to it, a full disk."""
    status = getattr(
        error.__cause__ or error.__context__ or error, "status", getattr(error, "status", None)
    )
    answered = status is not None and 400 <= status < 500 and status not in (408, 429)
    if (
        answered
        or isinstance(error, PermissionError)
        or (isinstance(error, FileNotFoundError) and not error.__cause__)
    ):
        raise InputError(
            f"{name} cannot be fetched: {_said(error)}: is it still there, and may you read it?"
        ) from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error


def _said(error: BaseException) -> str:
    """An error in one line, without credentials of an address.

    File systems report an unreachable server as a missing file.
    """
    if isinstance(error, FileNotFoundError) and error.__cause__:
        error = error.__cause__
    status = getattr(error, "status", None)
    text = f"{status} {getattr(error, 'message', '')}" if status else " ".join(str(error).split())
    return " ".join(_public(word) for word in text.split()) or type(error).__name__


def _public(address: str) -> str:
    """An address without user, password and query, which may be secret."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _note(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.json")


def _stamp(path: Path) -> str:
    """What a file keeps when it is renamed; empty if there is none."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return ""
    return f"{info.st_ino} {info.st_size} {info.st_mtime_ns}"


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, kind).hexdigest()


def open_files(url: str) -> tuple[Any, str]:
    """The fsspec file system for a URL, and the address in it. InputError if there is none."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # the library's own limit ends every transfer after five minutes
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60),
            "trust_env": True,
        }
    try:
        files, address = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{_public(url)} cannot be opened: {error} (`pip install 'dvc[s3,gs,ssh]'` brings what"
            " those need)"
        ) from error
    return files, str(address)


def run(url: str, target: Path, sha256: str | None = None, md5: str | None = None) -> None:
    """Fetch one file, against one checksum at most, and print its size."""
    checksum = None
    if sha256 or md5:
        checksum = Checksum("sha256", sha256) if sha256 else Checksum("md5", str(md5))
    files, address = open_files(url)
    fetch(files, address, target, checksum)
    verified = f", {checksum.kind} as it should be" if checksum else ""
    print(f"{target}: {target.stat().st_size} bytes from {_public(url)}{verified}")

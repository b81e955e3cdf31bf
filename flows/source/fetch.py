"""Resumable transfer of one file from any fsspec source: file, http(s), s3, gs, ssh.

    med-r1 fetch-file https://example.org/corpus.zip data/raw/corpus.zip --sha256 9f86d0...

Received bytes go to `<target>.part`; `<target>.part.json` records the version of the source and how
many bytes are safely on disk. An interrupted transfer resumes from there if the source is still the
same, and restarts if it is not or if the server does not support byte ranges. `target` exists only
once it is complete.
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
"""Attempts without a byte of progress before a transfer fails."""
PAUSE: Final = 1.0
"""Seconds before the second attempt; doubled before each further one."""
BLOCK: Final = 4 * 2**20
"""Bytes per request."""
SAFE: Final = 16 * 2**20
"""Bytes between two fsyncs: the most that is fetched again after a kill or a power cut."""
RESERVE: Final = 64 * 2**20
"""Bytes to leave free on the disk."""

Result = TypeVar("Result")

_MIB: Final = 2**20
_VERSION_KEYS: Final = (
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
_TIME_KEYS: Final = ("mtime", "Last-Modified", "LastModified", "last_modified", "updated")


class Checksum(NamedTuple):
    """The expected hash of the whole file, in hex."""

    kind: Literal["sha256", "md5"]
    digest: str


@dataclass(frozen=True)
class _State:
    """Version of the source that is being fetched, and how many bytes are safely on disk."""

    source: str
    size: int | None
    identity: dict[str, str]
    done: int
    placed: str = ""
    """Stamp of the complete file, which identifies it after the rename; empty before."""

    def same(self, other: _State) -> bool:
        """Is it the same version of the same source."""
        return (self.source, self.size, self.identity) == (other.source, other.size, other.identity)


class _ChangedError(Exception):
    """The source changed during the transfer."""


class _NoRangesError(Exception):
    """The server does not support byte ranges."""


def fetch(
    files: Any,
    address: str,
    target: Path,
    checksum: Checksum | None = None,
    *,
    keep_state: bool = False,
) -> None:
    """Fetch `address` from the fsspec file system `files` to `target`, resuming if possible.

    An existing `target` is replaced only by the complete file. With `keep_state`, the state file
    stays until `remove_state`, and another call fetches nothing while source and target are
    unchanged. Raises InputError if the source is missing, unreadable, keeps failing or does not
    match `checksum`, if another process is fetching to `target`, or if the disk is too small.
    """
    transfer = _Transfer(files, address, target)

    def busy(_: str) -> InputError:
        return InputError(f"another process is fetching to {transfer.part}: wait until it ends")

    with exclusive_lock(transfer.part, on_conflict=busy), transfer.part.open("r+b") as out:
        if keep_state and _with_retries(transfer, transfer.is_up_to_date):
            transfer.part.unlink()
            return
        _with_retries(transfer, lambda: transfer.run(out))
        if checksum:
            digest = _digest(transfer.part, checksum.kind)
            if digest != checksum.digest.lower():
                remove_state(target)
                transfer.part.unlink()
                raise InputError(
                    f"{transfer.name} has {checksum.kind} {digest}, expected {checksum.digest}: it"
                    " is not the expected file, and the fetched bytes were deleted"
                )
        transfer.place()
    if not keep_state:
        remove_state(target)


def remove_state(target: Path) -> None:
    """Remove the state file of a transfer to `target`."""
    _state_path(target).unlink(missing_ok=True)


class _Transfer:
    """One source and its partial copy."""

    def __init__(self, files: Any, address: str, target: Path) -> None:
        self.files = files
        self.address = address
        self.target = target
        self.part = target.with_name(f"{target.name}.part")
        self.name = _public(address)
        self.done = 0
        self._state_path = _state_path(target)
        self._use_ranges = True

    def is_up_to_date(self) -> bool:
        """Is the target the file fetched last, and the source unchanged."""
        before = self._read_state()
        now = self._probe()
        return bool(
            before
            and before.placed
            and before.placed == _stamp(self.target)
            and before.same(now)
            and now.identity
        )

    def place(self) -> None:
        """Rename the complete partial file to the target."""
        state = self._read_state()
        assert state is not None, "written with the last block"
        write_json(self._state_path, asdict(replace(state, placed=_stamp(self.part))))
        self.part.replace(self.target)

    def run(self, out: IO[bytes]) -> None:
        """Fetch the missing bytes, from the first if nothing can be resumed."""
        now = self._probe()
        before = self._read_state()
        resumable = before and before.same(now) and now.identity and self._use_ranges
        safe = before.done if before and resumable else 0
        self.done = min(safe, out.seek(0, os.SEEK_END))
        out.truncate(self.done)
        self._check_space(now)
        self._receive(out, now)
        if now.size is not None and self.done != now.size:
            raise EOFError(f"{self.done} of {now.size} bytes received")
        if self._probe() != now:
            raise _ChangedError(f"{self.name} changed while it was fetched")

    def _receive(self, out: IO[bytes], now: _State) -> None:
        out.seek(self.done)
        self._save_state(out, now)
        safe = self.done
        report = progress_reporter(
            f"fetching {self.part.stem}", (now.size or 0) // _MIB, "MiB", done=self.done // _MIB
        )
        for block in self._blocks(now.size):
            out.write(block)
            self.done += len(block)
            report(self.done // _MIB, "")
            if self.done - safe >= SAFE:
                self._save_state(out, now)
                safe = self.done
        self._save_state(out, now)

    def _blocks(self, size: int | None) -> Iterator[bytes]:
        """The source from `self.done` on, with one range request per block where supported."""
        if size is not None and self.done >= size:
            return
        block_size = BLOCK if self._use_ranges else 0
        with self.files.open(self.address, "rb", block_size=block_size) as source:
            try:
                source.seek(self.done)
                while block := source.read(BLOCK):
                    yield block
            except ValueError as error:
                # fsspec's error for a server that ignores the requested range
                if self._use_ranges:
                    raise _NoRangesError from error
                raise

    def _probe(self) -> _State:
        """The current version of the source."""
        self.files.invalidate_cache()
        info = self.files.info(self.address)
        if info.get("type") == "directory":
            raise InputError(f"{self.name} is a folder: only single files can be fetched this way")
        version = {key: str(info[key]) for key in _VERSION_KEYS if info.get(key)}
        return _State(
            hashlib.sha256(self.address.encode()).hexdigest(),
            None if info.get("size") is None else int(info["size"]),
            version or {key: str(info[key]) for key in _TIME_KEYS if info.get(key)},
            0,
        )

    def _read_state(self) -> _State | None:
        """The saved state; None if it is missing or corrupt."""
        try:
            state = _State(**json.loads(self._state_path.read_text(encoding="utf-8")))
            return state if isinstance(state.done, int) and state.done >= 0 else None
        except (OSError, ValueError, TypeError):
            return None

    def _save_state(self, out: IO[bytes], now: _State) -> None:
        # bytes before the state that counts them
        out.flush()
        os.fsync(out.fileno())
        write_json(self._state_path, asdict(now) | {"done": self.done})

    def _check_space(self, now: _State) -> None:
        missing = (now.size or 0) - self.done
        for _, needed, free in find_shortages({self.part.parent: missing}, RESERVE):
            raise DiskFullError(
                f"{self.name} needs {needed / _MIB:.0f} MiB more in {self.part.parent}/, which has"
                f" {free / _MIB:.0f} MiB free: free some space (`dvc gc --workspace` deletes old"
                " results) and re-run the same command to resume"
            )

    def without_ranges(self) -> None:
        """Fetch in one stream from the first byte from now on."""
        self._use_ranges = False


def _with_retries(transfer: _Transfer, run: Callable[[], Result]) -> Result:
    """Retry until `run` succeeds or ATTEMPTS in a row made no progress."""
    failures = 0
    reached = -1
    while True:
        try:
            return run()
        except _NoRangesError:
            transfer.without_ranges()
            print(
                f"{transfer.name}: the server does not support byte ranges: fetching from the"
                " first byte in one stream",
                file=sys.stderr,
            )
            continue
        except InputError:
            raise
        except Exception as error:
            _raise_if_permanent(transfer.name, error)
            progressed = transfer.done > reached and not isinstance(error, _ChangedError)
            failures = 1 if progressed else failures + 1
            reached = max(reached, transfer.done)
            if failures >= ATTEMPTS:
                raise InputError(
                    f"{transfer.name} cannot be fetched ({_describe(error)}), tried {failures}"
                    f" times; {transfer.done / _MIB:.1f} MiB are saved: re-run the same command to"
                    " resume"
                ) from error
            pause = PAUSE * 2 ** (failures - 1)
            print(
                f"{transfer.name}: {_describe(error)}; retrying in {pause:g} s from"
                f" {transfer.done / _MIB:.1f} MiB",
                file=sys.stderr,
            )
            time.sleep(pause)


def _raise_if_permanent(name: str, error: Exception) -> None:
    """Raise errors that a retry cannot fix: a missing file, no permission, a full disk."""
    # fsspec wraps the response of an HTTP server in another error
    cause = error.__cause__ or error.__context__
    status = getattr(cause, "status", None) or getattr(error, "status", None)
    client_error = status is not None and 400 <= status < 500 and status not in (408, 429)
    missing = isinstance(error, FileNotFoundError) and not error.__cause__
    if client_error or missing or isinstance(error, PermissionError):
        raise InputError(
            f"{name} cannot be fetched: {_describe(error)}: check that it exists and that you may"
            " read it"
        ) from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error


def _describe(error: BaseException) -> str:
    """An error in one line, without the credentials of an address."""
    # file systems report an unreachable server as a missing file
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


def _state_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.json")


def _stamp(path: Path) -> str:
    """Inode, size and time of a file, which a rename preserves; empty if it is missing."""
    try:
        info = path.stat()
    except FileNotFoundError:
        return ""
    return f"{info.st_ino} {info.st_size} {info.st_mtime_ns}"


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, kind).hexdigest()


def open_files(url: str) -> tuple[Any, str]:
    """The fsspec file system for a URL and the address in it; InputError if there is none."""
    import fsspec

    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        # aiohttp's default limit ends every transfer after five minutes
        options["client_kwargs"] = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=60, sock_read=60),
            "trust_env": True,
        }
    try:
        files, address = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"{_public(url)} cannot be opened: {error} (s3, gs and ssh need `pip install"
            " 'dvc[s3,gs,ssh]'`)"
        ) from error
    return files, str(address)


def run(url: str, target: Path, sha256: str | None = None, md5: str | None = None) -> None:
    """Fetch one file, verify its checksum (SHA-256 if both are given), and print its size."""
    checksum = None
    if sha256 or md5:
        checksum = Checksum("sha256", sha256) if sha256 else Checksum("md5", str(md5))
    files, address = open_files(url)
    fetch(files, address, target, checksum)
    verified = f", {checksum.kind} verified" if checksum else ""
    print(f"{target}: {target.stat().st_size} bytes from {_public(url)}{verified}")

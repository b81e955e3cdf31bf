"""Hand the work of a stage process over to a fork of a process that has imported its libraries.

Importing torch, transformers and trl takes more processor time than a short evaluation. A flow that
runs many stages starts one server (`stages.core.distributed.preloaded`) and names its socket in
`PRELOADED`. A stage process then connects to it and sends what makes a process: module, arguments,
folder, environment, umask, standard input, output and error. The server forks a worker that runs
the module in its place, with these. This process forwards signals to it and ends as it ends.

The stage process remains what DVC, guards and users see and signal: when it is killed, so is the
worker. Where nobody offers a server, or none answers, or the server was not started as this process
would have been, `hand_over` does nothing and the process does its own work. What is not handed
over: open files beyond the three, and stopping (SIGSTOP, SIGTSTP) stops this process only.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Final, NoReturn

from stages.core.errors import ExitCode

PRELOADED: Final = "MED_R1_PRELOADED"
"""Environment variable: the socket of a server with preloaded libraries."""
MODULES: Final = ("stages.train", "stages.evaluate")
"""Modules whose libraries such a server imports."""
ACCEPTED: Final = b"a"
GO: Final = b"\0"
"""Sent by the stage process once it will wait for the worker; later bytes are signals' numbers."""
STATUS: Final = struct.Struct("<i")
"""The worker's wait status, sent at its end."""
PATIENCE_S: Final = 300.0
"""Seconds that the server may take to answer; it answers once it has imported everything."""
_LENGTH: Final = struct.Struct("<I")
_STANDARD_FILES: Final = 3
_FORWARDED: Final = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_FREE_VARIABLES: Final = ("_", "FLOW_RECORD", "OLDPWD", "PWD", "SHLVL")
_FREE_PREFIXES: Final = ("DVC_", "MED_R1_", "PREFECT_")


@dataclass(frozen=True)
class Request:
    """What makes a stage process, beside its open files.

    `module` and `arguments` are those of `python -m`, `command` all of its command line; `ignored`:
    numbers of the signals that it ignores; `interpreter`: see `interpreter_identity`.
    """

    module: str
    arguments: list[str]
    command: list[str]
    executable: str
    folder: str
    search_path: list[str]
    environment: dict[str, str]
    umask: int
    ignored: list[int]
    interpreter: list[Any]

    def send(self, connection: socket.socket) -> None:
        """Send it, with this process's standard files; OSError if that fails."""
        content = json.dumps(asdict(self)).encode()
        socket.send_fds(connection, [_LENGTH.pack(len(content))], range(_STANDARD_FILES))
        connection.sendall(content)


def receive_request(connection: socket.socket) -> tuple[Request, list[int]]:
    """A request and the descriptors of standard input, output and error; OSError if it is cut."""
    head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, _STANDARD_FILES)
    if len(head) < _LENGTH.size or len(descriptors) < _STANDARD_FILES:
        raise ConnectionError("the stage process ended before it had sent its request")
    (size,) = _LENGTH.unpack(head)
    return Request(**json.loads(_receive_exactly(connection, size))), descriptors


def hand_over() -> None:
    """Have a preloaded worker do this process's work and end as it ends; return if none does.

    Called while the package `stages` is imported for `python -m` with one of `MODULES`, so that
    this process imports nothing else; in any other case it only returns, as it does on systems
    other than Linux. Removes `PRELOADED` from the environment, since the processes that a stage
    starts do work of their own.
    """
    path = os.environ.pop(PRELOADED, None)
    module = _starting_module()
    if path is None or module not in MODULES or sys.platform != "linux":
        return
    status = _status_of_worker(path, module)
    if status is not None:
        _end_like(status)


def _starting_module() -> str | None:
    """The module that `python -m` is about to run, with no other option; None otherwise."""
    is_starting = sys.argv[:1] == ["-m"] and sys.orig_argv[1:2] == ["-m"]
    return sys.orig_argv[2] if is_starting else None


def _status_of_worker(path: str, module: str) -> int | None:
    """The wait status of a worker that has run `module`; None if the server does not start one."""
    with socket.socket(socket.AF_UNIX) as connection, _forwarding_later(connection) as forward:
        connection.settimeout(PATIENCE_S)
        try:
            connection.connect(path)
            _request(module).send(connection)
            if connection.recv(1) != ACCEPTED:
                return None
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
            try:
                connection.sendall(GO)
                forward()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except OSError:
            return None
        connection.settimeout(None)
        return _await_status(connection)


def _end_like(status: int) -> NoReturn:
    """End this process as the one with this wait status ended: with its code, or by its signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        # the worker has dumped its memory, if it was to
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


def interpreter_identity() -> list[Any]:
    """What imports depend on beside the environment; as JSON gives it back.

    Version and folder of Python, its flags, and the cores, by which libraries size thread pools.
    """
    return [sys.version, sys.prefix, list(sys.flags), sorted(os.sched_getaffinity(0))]


def different_variables(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Names of variables in which two environments differ, as far as a library may read them.

    Libraries read many of theirs when they are imported. Without those that DVC, the shell and the
    flow set for each stage, which no library reads.
    """
    names = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    return sorted(
        name
        for name in names
        if name not in _FREE_VARIABLES and not name.startswith(_FREE_PREFIXES)
    )


def _request(module: str) -> Request:
    os.umask(umask := os.umask(0))
    return Request(
        module=module,
        arguments=sys.argv[1:],
        command=sys.orig_argv,
        executable=sys.executable,
        folder=os.getcwd(),
        search_path=sys.path,
        environment=dict(os.environ),
        umask=umask,
        ignored=[
            number
            for number in signal.valid_signals()
            if signal.getsignal(number) == signal.SIG_IGN
        ],
        interpreter=interpreter_identity(),
    )


@contextmanager
def _forwarding_later(connection: socket.socket) -> Iterator[Callable[[], None]]:
    """Yields a function from whose call on signals go to `connection`, until the context ends.

    Signals that this process ignores stay ignored.
    """
    before: dict[signal.Signals, Any] = {}

    def send(number: int, _: FrameType | None) -> None:
        with suppress(OSError):  # the worker has ended
            connection.send(bytes([number]))

    def forward() -> None:
        for number in _FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, send)

    try:
        yield forward
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await_status(connection: socket.socket) -> int:
    """The worker's wait status; that of a stage that was killed if nobody can tell it."""
    try:
        return int(STATUS.unpack(_receive_exactly(connection, STATUS.size))[0])
    except OSError:
        print(
            "error: the preloaded process that did this stage's work was killed from outside."
            " Re-run the same command to resume",
            file=sys.stderr,
        )
        return ExitCode.KILLED << 8


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    """The next `size` bytes; ConnectionError if the other side ends before."""
    parts: list[bytes] = []
    missing = size
    while missing:
        part = connection.recv(missing)
        if not part:
            raise ConnectionError(f"the other side ended {missing} of {size} bytes too early")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)

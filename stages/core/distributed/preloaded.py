"""Server of preloaded libraries: stages train and evaluate run in forks of it.

    python -m stages.core.distributed.preloaded SOCKET [LIBRARY...]

It listens on a Unix socket and imports what these stages import from others (`LIBRARIES`), once.
For each stage process that connects (`stages.core.distributed.handover`), it forks a supervisor,
which forks the worker that does the stage's work. A supervisor forwards signals to the worker's
process group, reports how the worker ended, and kills the group if the stage process is gone; when
a supervisor is killed, so is its worker. Supervisors do not need the server: what runs when the
server ends, ends well.

No module of this project is preloaded: a worker imports them from its own folder, so that the code
that runs is the one whose hashes DVC takes. Only for CPUs: CUDA cannot be used in a fork of a
process that has initialised it. What libraries print when they are imported is in the server's
output. It ends when its standard input ends, a pipe from the process that started it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from types import ModuleType
from typing import Final, NoReturn

from setproctitle import getproctitle, setproctitle

from stages.core.distributed.handover import (
    ACCEPTED,
    GO,
    PRELOADED,
    STATUS,
    Request,
    different_variables,
    interpreter_identity,
    receive_request,
)
from stages.core.distributed.parent_death import end_with_parent

LIBRARIES: Final = (
    *("PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PpmImagePlugin"),
    *("PIL.PngImagePlugin", "numpy", "jinja2", "pyarrow.parquet", "pydantic", "ruamel.yaml"),
    *("tabulate", "tqdm", "datasets", "torch", "safetensors.torch", "accelerate"),
    # transformers imports a model's modules when the model is loaded
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "transformers.models.qwen2_vl.image_processing_qwen2_vl",
    "transformers.models.qwen2_vl.video_processing_qwen2_vl",
    "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
)
"""What a training and an evaluation have imported at their end: tests/core/distributed compares."""
_OPTIONAL: Final = ("tabulate",)
"""Imported by other libraries where it is installed."""
_OWN_PACKAGE: Final = "stages"
_BACKLOG: Final = 64
_UNFLUSHED: Final = 120
"""Exit code of Python if its standard output cannot be flushed at the end."""
_LEFTOVER_S: Final = 5.0
"""Seconds that processes of a worker have to end after it."""


def main(path: Path, libraries: Sequence[str]) -> None:
    """Serve on the socket `path` until standard input ends; removes the socket and its folder."""
    interpreter, environment = interpreter_identity(), dict(os.environ)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            # stage processes may connect from now on, and wait
            listener.listen(_BACKLOG)
            preload(libraries)
            for connection in _connections(listener):
                _supervise(connection, interpreter, environment)
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()


def _connections(listener: socket.socket) -> Iterator[socket.socket]:
    """Yields each connection, in a fork of its own; ends, in this process, with standard input."""
    starter = sys.stdin.fileno()
    supervisors: dict[int, int] = {}
    while True:
        watched: list[int | socket.socket] = [starter, listener, *supervisors]
        ready, _, _ = select.select(watched, [], [])
        for ended in supervisors.keys() & set(ready):
            os.waitpid(supervisors.pop(ended), 0)
            os.close(ended)
        if starter in ready and not os.read(starter, 4096):
            return
        if listener in ready:
            connection, _ = listener.accept()
            with connection:
                supervisor = os.fork()
                if not supervisor:
                    listener.close()
                    yield connection
                supervisors[os.pidfd_open(supervisor)] = supervisor


def preload(libraries: Sequence[str]) -> None:
    """Import libraries and make this process ready to be forked.

    RuntimeError if it cannot be: a library has started a Python thread or initialised CUDA.
    """
    for name in libraries:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if name not in _OPTIONAL or error.name != name:
                raise
    if threading.active_count() > 1:
        raise RuntimeError(f"threads run after imports: {threading.enumerate()}")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise RuntimeError("CUDA is initialised after imports")
    # finds the place of the title, which it could not after `_take_over`
    getproctitle()
    # the collector of a worker would write to, and so copy, the memory of all these objects
    gc.collect()
    gc.freeze()


def _supervise(
    connection: socket.socket, interpreter: list[object], environment: dict[str, str]
) -> NoReturn:
    """Serve one stage process and end."""
    try:
        _serve(connection, interpreter, environment)
    except Exception:  # the stage process sees that it has no worker
        traceback.print_exc()
    finally:
        os._exit(0)


def _serve(
    connection: socket.socket, interpreter: list[object], environment: dict[str, str]
) -> None:
    """Start a worker for the stage process, unless it would differ from it, and wait for both."""
    request, descriptors = receive_request(connection)
    if reason := _refusal(request, interpreter, environment):
        print(f"{' '.join(request.command)}: {reason}", file=sys.stderr, flush=True)
        return
    connection.sendall(ACCEPTED)
    if connection.recv(1) != GO:
        return
    supervisor = os.getpid()
    leads, led = os.pipe()
    worker = os.fork()
    if not worker:
        os.close(leads)
        connection.close()
        _become(request, descriptors, supervisor, led)
    for descriptor in (*descriptors, led):
        os.close(descriptor)
    os.read(leads, 1)  # until the worker leads the group that signals go to, or has ended
    os.close(leads)
    setproctitle(f"supervisor of {worker}")
    _watch(worker, connection)


def _refusal(
    request: Request, interpreter: list[object], environment: dict[str, str]
) -> str | None:
    """Why a fork would differ from the stage process; None if it would not."""
    if request.interpreter != interpreter:
        return f"another interpreter: {request.interpreter}, not {interpreter}"
    if names := different_variables(request.environment, environment):
        return f"other variables: {', '.join(names)}"
    return None


def _watch(worker: int, connection: socket.socket) -> None:
    """Forward signals to the worker and report its end; kill it if the stage process is gone."""
    ended = os.pidfd_open(worker)
    while True:
        watched: list[int | socket.socket] = [ended, connection]
        ready, _, _ = select.select(watched, [], [])
        if ended in ready:
            break
        try:
            numbers = connection.recv(64)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            with suppress(ProcessLookupError):
                os.killpg(worker, number)
        if not numbers:
            break
    _, status = os.waitpid(worker, 0)
    with suppress(OSError):
        connection.sendall(STATUS.pack(status))
    connection.close()
    _end_leftovers(worker)


def _end_leftovers(group: int) -> None:
    """End the processes that a worker has left in its group, as a guard would."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        deadline = time.monotonic() + _LEFTOVER_S
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)


def _become(request: Request, descriptors: Sequence[int], supervisor: int, led: int) -> NoReturn:
    """Do a stage process's work in this fork, and end as an interpreter would.

    In a session of its own, as a guard starts each stage: Linux shares the cores out by session
    first (sched_autogroup), so all workers in one would get no more than one other program.

    `led` is closed when this process leads its session and group.
    """
    code = 1
    try:
        os.setsid()
        os.close(led)
        if end_with_parent(supervisor):
            _take_over(request, descriptors)
            code = _run(request.module)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _take_over(request: Request, descriptors: Sequence[int]) -> None:
    """Make this process like one that has just been started with the request's command."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request.folder)
    os.umask(request.umask)
    os.environ.clear()
    os.environ.update(request.environment)
    os.environ.pop(PRELOADED, None)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        is_ignored = signal.getsignal(number) == signal.SIG_IGN
        if is_ignored != (number in request.ignored):
            signal.signal(number, signal.SIG_DFL if is_ignored else signal.SIG_IGN)
    assert isinstance(sys.stdout, TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))
    sys.argv = ["-m", *request.arguments]
    sys.orig_argv = request.command
    sys.executable = request.executable
    sys.path[:] = request.search_path
    for name in [each for each in sys.modules if each.partition(".")[0] == _OWN_PACKAGE]:
        del sys.modules[name]
    sys.modules["__main__"] = ModuleType("__main__")
    importlib.invalidate_caches()
    _seed_generators()
    command = os.fsencode(" ".join(request.command))
    setproctitle(command.decode("utf-8", "replace"))


def _seed_generators() -> None:
    """Seed the generators that libraries seed from the system when they are imported.

    Python's own is seeded in every fork, torch's begins with the same number in every process.
    """
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if fingerprint := sys.modules.get("datasets.fingerprint"):
        fingerprint.fingerprint_rng.seed()


def _run(module: str) -> int:
    """Run a module as `python -m` does, to the end of the interpreter; the exit code."""
    interrupted = False
    try:
        # what the interpreter itself calls for -m: tracebacks begin alike
        runpy._run_module_as_main(module)  # type: ignore[attr-defined]
        code = 0
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException as error:
        # without the frame of this function
        trace = error.__traceback__ and error.__traceback__.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        code = 1
        interrupted = isinstance(error, KeyboardInterrupt)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at any end
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = _UNFLUSHED
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return code


def _exit_code(end: SystemExit) -> int:
    """The exit code of an uncaught SystemExit; prints its text, if it has one."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or LIBRARIES)
    # some libraries report, at the end of an interpreter, the objects that are not collected
    os._exit(0)

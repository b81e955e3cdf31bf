"""Stages in forks of a server: what they see, print and leave is what they would alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import stages
from flows.doctor.processes import command_words
from stages.core.distributed.handover import PRELOADED, different_variables
from stages.core.errors import ExitCode
from stages.core.outcome import STAGE, read_outcome
from tests.core.distributed.servers import (
    COMMAND,
    Server,
    environment,
    finish,
    is_alive,
    serving,
    start,
    until,
)
from tests.workspaces import REPOSITORY

LIBRARY = "wave"
"""A module that no stage imports, as the library of the servers."""
STAGE_CODE = '''
"""A stage that ends in many ways."""
import atexit, json, os, random, signal, subprocess, sys, threading, time
from pathlib import Path
from stages.core.cli import run_stage, stage_parser
from stages.core.errors import DiskFullError, InputError

def facts():
    os.umask(umask := os.umask(0))
    return {
        "argv": sys.argv, "command": sys.orig_argv, "path": sys.path, "folder": os.getcwd(),
        "environment": dict(os.environ), "umask": umask, "given": sys.stdin.read(),
        "name": __name__, "spec": __spec__.name, "file": __file__, "executable": sys.executable,
        "main": sys.modules["__main__"].__dict__ is globals(),
        "handlers": {n: str(signal.getsignal(n)) for n in sorted(signal.valid_signals())},
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "files": sorted(os.listdir("/proc/self/fd"))[:3], "encoding": sys.stdout.encoding,
        "buffered": sys.stdout.line_buffering, "threads": threading.active_count(),
        "other": {n: m.__file__ for n, m in sys.modules.items() if n.startswith("stages.")},
    }

def main():
    how, rest = sys.argv[1], sys.argv[2:]
    if how == "facts":
        print(json.dumps(facts()))
        print("wave" in sys.modules, random.random(), file=sys.stderr)
    if how == "usage":
        stage_parser("train", __doc__).parse_args()
    if how == "refused":
        raise InputError("no such image: fetch it")
    if how == "full":
        raise DiskFullError("no space")
    if how == "crash":
        {}["missing"]
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "exit":
        sys.exit(json.loads(rest[0]))
    if how == "signal":
        os.kill(os.getpid(), int(rest[0]))
    if how == "end":
        atexit.register(print, "at exit")
        threading.Timer(0.1, print, ["from a thread"]).start()
        sys.stderr.write("no line end")
        print("not flushed", end="")
    if how == "closed":
        os.close(1)
        print("lost")
    if how == "wait":
        nowhere = subprocess.DEVNULL
        child = subprocess.Popen(["sleep", "600"], stdout=nowhere, stderr=nowhere)
        print(os.getpid(), child.pid, flush=True)
        until = time.monotonic() + 120
        while not Path(rest[0]).exists() and time.monotonic() < until:
            time.sleep(0.02)
        if rest[1:]:
            sys.exit(0)  # and leaves its child
        child.kill()
        print("done")

if __name__ == "__main__":
    if sys.argv[1] == "early":
        raise KeyboardInterrupt
    run_stage(main)
'''


def checkout(folder: Path, code: str = STAGE_CODE) -> Path:
    """A folder with a stage train of its own, and the repository's stages.core."""
    (folder / "stages").mkdir(parents=True)
    for name in ("__init__.py", "core"):
        (folder / "stages" / name).symlink_to(REPOSITORY / "stages" / name)
    (folder / "stages" / "train.py").write_text(code, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkout(tmp_path / "checkout")


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="preloaded-") as path:
        yield Path(path) / "s"


@pytest.fixture
def server(short: Path) -> Iterator[Server]:
    with serving(short, LIBRARY) as server:
        yield server


def test_the_package_hands_over_where_the_variable_is_set() -> None:
    assert repr(PRELOADED).replace("'", '"') in Path(stages.__file__).read_text(encoding="utf-8")


def test_a_fork_sees_all_that_a_process_of_its_own_sees(folder: Path, server: Server) -> None:
    def facts(with_server: Server | None, *, how: str = "facts") -> tuple[Any, list[str]]:
        code, out, err = finish(
            folder,
            *("train", how, "a b", "ü\udcff"),
            server=with_server,
            given="from a pipe",
            MED_R1_ODD="\udcfe=1\n2",
            DVC_STAGE="train@ct",
        )
        assert code == 0, err
        return json.loads(out), err.split()

    alone, (preloaded, _) = facts(None)
    assert preloaded == "False"
    forked, (preloaded, drawn) = facts(server)
    assert preloaded == "True", "it did its work in a fork of the server"
    assert forked == alone
    assert forked["environment"]["MED_R1_ODD"] == "\udcfe=1\n2"
    assert facts(server)[1][1] != drawn, "each fork has random numbers of its own"


ENDS: list[tuple[list[str], int]] = [
    (["usage", "--wrong"], ExitCode.USAGE),
    (["refused"], ExitCode.INPUT),
    (["full"], ExitCode.DISK_FULL),
    (["crash"], ExitCode.CRASHED),
    (["interrupt"], ExitCode.INTERRUPTED),
    (["early"], -signal.SIGINT),
    (["exit", "null"], 0),
    (["exit", "0"], 0),
    (["exit", "1"], 1),
    (["exit", "300"], 44),
    (["exit", "true"], 1),
    (["exit", '"a text"'], 1),
    (["signal", str(signal.SIGKILL.value)], -signal.SIGKILL),
    (["signal", str(signal.SIGTERM.value)], -signal.SIGTERM),
    (["signal", str(signal.SIGSEGV.value)], -signal.SIGSEGV),
    (["signal", str(signal.SIGPIPE.value)], 0),
    (["end"], 0),
    (["closed"], 120),
]


def test_a_fork_ends_and_prints_as_a_process_of_its_own(folder: Path, server: Server) -> None:
    for how, code in ENDS:
        ends = []
        for each in (None, server):
            done = finish(folder, "train", *how, server=each, **{STAGE: "train@a"})
            ends.append((done, read_outcome(folder, "train@a", "")))
        (alone, outcome), (forked, forked_outcome) = ends
        assert alone[0] == code, (how, alone)
        # of an output that cannot be written, the interpreter itself says so
        compared = 2 if how == ["closed"] else 3
        assert forked[:compared] == alone[:compared], how
        assert forked_outcome == outcome, how


def test_a_module_that_cannot_be_imported_is_named_alike(folder: Path, server: Server) -> None:
    assert finish(folder, "evaluate", server=server) == finish(folder, "evaluate")
    (folder / "stages" / "train.py").write_text("import nowhere\n", encoding="utf-8")
    alone = finish(folder, "train")
    assert "No module named 'nowhere'" in alone[2]
    assert finish(folder, "train", server=server) == alone


def test_a_terminal_gets_its_output_line_by_line(folder: Path, server: Server) -> None:
    code = folder / "stages" / "train.py"
    code.write_text(STAGE_CODE.replace(", flush=True", ""), encoding="utf-8")
    ours, terminal = os.openpty()
    with (
        os.fdopen(ours, "rb", buffering=0) as screen,
        subprocess.Popen(
            [sys.executable, "-m", "stages.train", "wait", "go"],
            cwd=folder,
            env=environment(server, {}),
            stdout=terminal,
        ) as process,
    ):
        os.close(terminal)
        worker = int(screen.readline().split()[0])
        assert worker != process.pid
        assert os.readlink(f"/proc/{worker}/fd/1").startswith("/dev/pts/")
        (folder / "go").touch()
        assert screen.readline() == b"done\r\n"


def test_code_is_that_of_the_folder_at_that_moment(
    folder: Path, server: Server, tmp_path: Path
) -> None:
    other = checkout(tmp_path / "other", "print('other')\n")
    (other / "stages" / "policy.py").write_text("WORD = 'first'\n", encoding="utf-8")
    assert finish(other, "train", server=server)[1] == "other\n"
    assert finish(folder, "train", "exit", "7", server=server)[0] == 7
    text = "import sys\nfrom stages.policy import WORD\nprint(WORD, 'wave' in sys.modules)\n"
    (other / "stages" / "train.py").write_text(text, encoding="utf-8")
    assert finish(other, "train", server=server)[1] == "first True\n"
    (other / "stages" / "policy.py").write_text("WORD = 'second word'\n", encoding="utf-8")
    assert finish(other, "train", server=server)[1] == "second word True\n"


def test_only_stages_whose_libraries_are_there_are_handed_over(
    folder: Path, server: Server
) -> None:
    text = "import os, sys\nprint('wave' in sys.modules, 'MED_R1_PRELOADED' in os.environ)\n"
    for name in ("report", "train"):
        (folder / "stages" / f"{name}.py").write_text(text, encoding="utf-8")
    assert finish(folder, "report", server=server)[1] == "False False\n"
    assert finish(folder, "train", server=server)[1] == "True False\n"


def wait(
    folder: Path, server: Server, name: str, *rest: str
) -> tuple[subprocess.Popen[str], int, int]:
    """A stage that waits for the file `name`; its process, its worker's id, and its child's."""
    process = start(folder, "train", "wait", name, *rest, server=server)
    assert process.stdout
    worker, child = map(int, process.stdout.readline().split())
    assert worker != process.pid
    return process, worker, child


@pytest.mark.parametrize(
    ("number", "code", "printed"),
    [
        (signal.SIGTERM, -signal.SIGTERM, ""),
        (signal.SIGINT, ExitCode.INTERRUPTED, "interrupted: nothing half-written was kept"),
        (signal.SIGHUP, -signal.SIGHUP, ""),
    ],
)
def test_a_signal_to_the_stage_ends_the_worker_as_it_would_end_the_stage(
    number: signal.Signals, code: int, printed: str, folder: Path, server: Server
) -> None:
    process, worker, child = wait(folder, server, "never")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.startswith(printed)
    assert bool(err) == bool(printed)
    until(lambda: not is_alive(worker) and not is_alive(child))


def test_a_signal_that_the_stage_ignores_is_ignored_by_the_worker(
    folder: Path, server: Server
) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process, worker, _ = wait(folder, server, "go")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    os.kill(worker, signal.SIGHUP)
    (folder / "go").touch()
    assert process.communicate(timeout=60)[0] == "done\n"


def test_a_killed_stage_takes_its_worker_and_that_ones_children_with_it(
    folder: Path, server: Server
) -> None:
    process, worker, child = wait(folder, server, "never")
    process.kill()
    process.communicate()
    until(lambda: not is_alive(worker) and not is_alive(child))
    until(lambda: not server.forks())


def test_what_a_worker_leaves_running_is_ended_after_it(folder: Path, server: Server) -> None:
    process, _, child = wait(folder, server, "go", "leave")
    assert is_alive(child)
    (folder / "go").touch()
    assert process.wait(60) == 0
    until(lambda: not is_alive(child))


def test_a_worker_is_shown_as_the_command_of_its_stage(folder: Path, server: Server) -> None:
    process, worker, _ = wait(folder, server, "go")
    command = command_words(psutil.Process(worker))
    assert command == [sys.executable, "-m", "stages.train", "wait", "go"]
    supervisor = psutil.Process(worker).ppid()
    assert command_words(psutil.Process(supervisor)) == ["supervisor", "of", str(worker)]
    (folder / "go").touch()
    process.communicate(timeout=60)


def test_a_killed_server_does_not_disturb_what_runs_and_the_next_stage_runs_alone(
    folder: Path, server: Server
) -> None:
    process, _, _ = wait(folder, server, "go")
    server.process.kill()
    server.process.wait()
    (folder / "go").touch()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "done\n", "")
    assert server.socket.exists(), "and nobody listens"
    code, _, err = finish(folder, "train", "facts", server=server)
    assert (code, err.split()[0]) == (0, "False")


def test_a_worker_whose_supervisor_is_killed_ends_and_the_stage_says_so(
    folder: Path, server: Server
) -> None:
    process = start(folder, "train", "wait", "never", server=server, **{STAGE: "train@a"})
    assert process.stdout
    worker, child = map(int, process.stdout.readline().split())
    os.kill(psutil.Process(worker).ppid(), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.KILLED
    assert "killed from outside. Re-run the same command to resume" in err
    outcome = read_outcome(folder, "train@a", "")
    assert outcome is not None
    assert outcome.code == ExitCode.KILLED
    until(lambda: not is_alive(worker))
    os.kill(child, signal.SIGKILL)


def test_several_workers_run_at_once(folder: Path, server: Server) -> None:
    one, worker, child = wait(folder, server, "one")
    other, second, _ = wait(folder, server, "other")
    assert worker != second
    # Linux shares the cores out by session: as with stages of guards, each has its own
    assert [os.getsid(each) for each in (worker, child, second)] == [worker, worker, second]
    (folder / "other").touch()
    assert other.communicate(timeout=60)[0] == "done\n"
    assert one.poll() is None
    (folder / "one").touch()
    assert one.communicate(timeout=60)[0] == "done\n"


@pytest.mark.parametrize("left", ["nothing", "a file", "a socket that nobody reads"])
def test_without_a_server_a_stage_runs_as_ever(left: str, folder: Path, short: Path) -> None:
    short.mkdir()
    path = short / "socket"
    if left == "a file":
        path.touch()
    if left == "a socket that nobody reads":
        with serving(short / "s") as server:
            server.process.kill()
            server.process.wait()
        path = server.socket
    gone = Server(subprocess.Popen(["true"], text=True), path, short / "log")
    gone.process.wait()
    assert finish(folder, "train", "refused", server=gone) == finish(folder, "train", "refused")


def test_a_server_with_other_variables_or_cores_is_not_used(folder: Path, server: Server) -> None:
    code, _, err = finish(folder, "train", "facts", server=server, OMP_NUM_THREADS="3")
    assert (code, err.split()[0]) == (0, "False")
    until(lambda: "other variables: OMP_NUM_THREADS" in server.log.read_text(encoding="utf-8"))
    code, _, err = finish(folder, "train", "facts", server=server, PYTHONOPTIMIZE="1")
    assert (code, err.split()[0]) == (0, "False")
    until(lambda: "another interpreter" in server.log.read_text(encoding="utf-8"))


def test_variables_that_differ_in_every_stage_are_no_difference() -> None:
    one = {"PATH": "/bin", "DVC_STAGE": "train@a", "MED_R1_RUN": "1", "SHLVL": "1", "HOME": "/a"}
    other = {"PATH": "/bin", "DVC_STAGE": "train@b", "FLOW_RECORD": "a", "HOME": "/b", "LANG": "C"}
    assert different_variables(one, other) == ["HOME", "LANG"]


def test_stages_wait_for_a_server_that_still_imports(
    folder: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import time\nfrom pathlib import Path\n"
    text += f"while not Path({str(folder / 'go')!r}).exists():\n    time.sleep(0.02)\n"
    (folder / "slow_library.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with serving(short, "slow_library") as server:
        process = start(folder, "train", "exit", "5", server=server)
        waiting = psutil.Process(process.pid)
        until(lambda: any(each.fd >= 0 for each in waiting.net_connections("unix")))
        assert process.poll() is None
        (folder / "go").touch()
        process.communicate(timeout=60)
        assert process.returncode == 5


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise OSError('a broken library')", "a broken library"),
        ("import no_such_module", "no_such_module"),
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(600,),"
            " daemon=True).start()",
            "threads run after imports",
        ),
        (
            "import sys, types\ntorch = sys.modules['torch'] = types.ModuleType('torch')\n"
            "torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)",
            "CUDA is initialised after imports",
        ),
    ],
)
def test_a_server_that_cannot_be_forked_ends_and_stages_run_alone(
    code: str, reason: str, folder: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bad_library.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with serving(short, "bad_library") as server:
        assert finish(folder, "train", "exit", "6", server=server)[0] == 6
        assert server.process.wait(60) == 1
        assert reason in server.log.read_text(encoding="utf-8")
        assert not server.socket.exists()


def test_a_server_ends_with_its_standard_input(server: Server) -> None:
    assert server.process.stdin
    server.process.stdin.close()
    assert server.process.wait(60) == 0
    assert not server.socket.exists()


def test_a_server_ends_with_a_starter_that_is_killed(folder: Path, short: Path) -> None:
    short.mkdir()
    code = (
        "import subprocess, sys, time\n"
        f"server = subprocess.Popen({[*COMMAND, str(short / 'socket'), LIBRARY]!r},"
        " stdin=subprocess.PIPE)\n"
        "print(server.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout
        pid = int(starter.stdout.readline())
        until(lambda: (short / "socket").exists())
        starter.kill()
    until(lambda: not is_alive(pid))
    assert not short.exists(), "neither the socket nor its folder remains"

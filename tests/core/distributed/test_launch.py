"""Several processes of a stage: shown, watched, named when one fails, and ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stages.core.distributed.launch import RankFailure, explain, launch, nodes, root_cause_rank
from stages.core.errors import ExitCode, InputError, ReportedError
from stages.core.outcome import StageOutcome
from tests.workspaces import REPOSITORY

MEMBER = """
import os, signal, sys, time
rank = os.environ["RANK"]
print("out of", rank, os.environ["WORLD_SIZE"])
print("ct: step 1 of 3, reward 1.00, 9 s to go" if rank == "0" else "unseen", file=sys.stderr)
from stages.core.cli import run_stage
from stages.core.errors import DiskFullError, InputError
def main():
    how = sys.argv[1]
    if how == "fine":
        return
    if rank == "1":
        time.sleep(0.5)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        print("what it did last", file=sys.stderr)
        if how == "refused":
            raise InputError("the question is too long: raise it")
        if how == "full":
            raise DiskFullError("/scratch is full")
        sys.exit(9)
    time.sleep(600)
run_stage(main)
"""


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module `member`, which the processes run."""
    (tmp_path / "member.py").write_text(MEMBER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPOSITORY}")
    return tmp_path


def test_the_first_process_is_shown_and_nothing_is_left(
    member: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    launch(["member", "fine"], 2, member / "logs", "again")
    out, err = capfd.readouterr()
    assert out == "out of 0 2\n"
    assert err == "ct: step 1 of 3, reward 1.00, 9 s to go\n", (
        "as the process wrote it: flows read such lines"
    )
    assert not (member / "logs").exists()
    assert "MED_R1_LAUNCHER" not in os.environ


@pytest.mark.parametrize(
    ("how", "code", "named"),
    [
        (
            "fails",
            ExitCode.INPUT,
            ["process 2 of 2 (rank 1)", "exit status 9", "Run it again", "    what it did last"],
        ),
        (
            "killed",
            ExitCode.INPUT,
            ["process 2 of 2 (rank 1)", "signal 9 (SIGKILL)", "dmesg", "    unseen"],
        ),
        (
            "refused",
            ExitCode.INPUT,
            ["the question is too long: raise it", "process 2 of 2 (rank 1)"],
        ),
        ("full", ExitCode.DISK_FULL, ["/scratch is full", "process 2 of 2 (rank 1)"]),
    ],
)
def test_a_process_that_dies_ends_the_others_and_is_named_with_its_last_lines(
    how: str, code: ExitCode, named: list[str], member: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        launch(["member", how], 2, member / "logs", "run it again")
    assert time.monotonic() - start < 60, "not the ten minutes of the other one"
    assert error.value.code == code
    for words in named:
        assert words in str(error.value)
    assert not [
        each for each in psutil.Process().children(recursive=True) if "member" in each.cmdline()
    ]


def test_what_the_first_process_said_of_itself_is_not_said_twice(
    member: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = "from stages.core.cli import run_stage\nfrom stages.core.errors import SettingsError\n"
    text += "def main():\n    raise SettingsError('no such image: fetch it')\nrun_stage(main)\n"
    (member / "refuses.py").write_text(text, encoding="utf-8")
    with pytest.raises(ReportedError) as stopped:
        launch(["refuses"], 2, member / "logs", "run it again")
    assert (stopped.value.code, str(stopped.value)) == (
        ExitCode.SETTINGS,
        "no such image: fetch it",
    )
    assert capfd.readouterr().err == "error: no such image: fetch it\n"


def test_a_host_that_nobody_comes_to_meet_says_so(
    member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MED_R1_NODES", "2")
    monkeypatch.setenv("MED_R1_RENDEZVOUS", place)
    monkeypatch.setattr("stages.core.distributed.launch.RENDEZVOUS_TIMEOUT_S", 3)
    with pytest.raises(
        InputError,
        match=(
            rf"the 2 hosts did not meet at {place} .*start the same command on all of them.*; run"
            r" it again"
        ),
    ):
        launch(["member", "fine"], 1, member / "logs", "run it again")


def test_two_hosts_that_meet_are_one_training(
    member: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (member / "above.py").write_text(
        ABOVE.replace('["below"]', '["member", "fine"]').replace(", 2,", ", 1,"), encoding="utf-8"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MED_R1_NODES", "2")
    monkeypatch.setenv("MED_R1_RENDEZVOUS", f"localhost:{port}")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "above.py"], cwd=member, env=environment, stdout=subprocess.PIPE, text=True
    ) as other:
        launch(["member", "fine"], 1, member / "own", "again")
        said, _ = other.communicate(timeout=60)
    assert sorted([said, capfd.readouterr().out]) == ["out of 0 2\n", "out of 1 2\n"]


@pytest.mark.parametrize(
    ("count", "place", "said"),
    [
        ("two", "", "is not a number of hosts"),
        ("0", "", "is not a number of hosts"),
        ("2", "", "set it on all to the same, as host1:29500"),
    ],
)
def test_hosts_that_cannot_meet_are_refused(
    count: str, place: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_R1_NODES", count)
    monkeypatch.setenv("MED_R1_RENDEZVOUS", place)
    with pytest.raises(InputError, match=said):
        nodes()


def test_those_that_were_ended_or_found_one_gone_are_not_the_root_cause() -> None:
    lost = RankFailure(ExitCode.LOST_PEER, StageOutcome(ExitCode.LOST_PEER, "the others are gone"))
    ended = RankFailure(-signal.SIGTERM, StageOutcome(ExitCode.KILLED))
    killed = RankFailure(-signal.SIGKILL, StageOutcome(ExitCode.KILLED), ["Killed"])
    refused = RankFailure(ExitCode.INPUT, StageOutcome(ExitCode.INPUT, "too long"))
    assert root_cause_rank({0: lost, 1: ended, 2: killed, 3: ended}) == 2
    assert root_cause_rank({0: refused, 1: ended}) == 0
    assert root_cause_rank({0: ended, 1: lost}) == 1
    assert "run it again" in explain({0: lost}, 2, "run it again")
    assert "run it again" not in explain({0: refused}, 2, "run it again")


ABOVE = """
import sys
from pathlib import Path
from stages.core.cli import run_stage
from stages.core.distributed.launch import launch
run_stage(lambda: launch(["below"], 2, Path("logs"), "run it again"))
"""
BELOW = """
import time
from pathlib import Path
from stages.core.distributed.launch import end_with_launcher
end_with_launcher()
import os
Path(f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_its_launcher(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "above.py").write_text(ABOVE, encoding="utf-8")
    (tmp_path / "below.py").write_text(BELOW, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{tmp_path}"}
    above = subprocess.Popen(
        [sys.executable, "above.py"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    files = [tmp_path / f"{rank}.pid" for rank in (0, 1)]
    deadline = time.monotonic() + 120
    while not all(path.exists() and path.read_text() for path in files):
        assert above.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    below = [psutil.Process(int(path.read_text())) for path in files]
    above.send_signal(number)
    _, said = above.communicate(timeout=60)
    _, left = psutil.wait_procs(below, timeout=20)
    assert not left
    if number == signal.SIGINT:
        assert above.returncode == 130
        assert "interrupted: " in said

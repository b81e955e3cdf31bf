"""Process guard: runs a command that must not outlive its caller.

    python -I flows/dvc_api/guard.py RECORD COMMAND...

Standard input is a pipe whose other end the caller holds. When it closes, because the caller closed
it, was cancelled or was killed, the command's whole process group is stopped: interrupted first, as
from a keyboard, so that DVC releases its locks and a stage removes half-written files; then
terminated; then killed. The remaining processes of the group are stopped the same way when the
command itself was killed, since a killed DVC leaves its stage running.

RECORD is a file that exists while the command runs. Uses only the standard library, so that it
starts in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

ESCALATION = ((signal.SIGINT, 15.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""Signals sent to the group in turn, each with the seconds it then has to end."""
_SET_CHILD_SUBREAPER = 36


def main(record: str, command: list[str]) -> int:
    """Run the command; its exit code, or 128 + the signal that ended it."""
    # become the parent of orphans of the group: an init may never reap them
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # only the pipe ends the guard; a handler, since the command would inherit an ignored signal
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"FLOW_RECORD": record},
    )
    try:
        with open(record, "w", encoding="utf-8") as handle:
            handle.write(f"{child.pid}\n")
        ended = os.pidfd_open(child.pid)
        while True:
            ready, _, _ = select.select([0, ended], [], [])
            if ended in ready or not os.read(0, 4096):
                break
        if ended in ready:
            child.wait()
    finally:
        _stop(child)
        if os.path.exists(record):
            os.unlink(record)
    code = child.wait()
    return 128 - code if code < 0 else code


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End every process of the command's group; return when none remains."""
    for number, seconds in ESCALATION:
        if not _send(child.pid, number):
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            _reap(child)
            if not _send(child.pid, 0):
                return
            time.sleep(0.05)


def _send(group: int, number: int) -> bool:
    """Signal the group; False if it has no process."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _reap(child: subprocess.Popen[bytes]) -> None:
    """Reap one ended process: until then it counts as a member of its group."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    if ended is None:
        return
    if ended.si_pid == child.pid:
        child.poll()
    else:
        os.waitpid(ended.si_pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

"""Runs a command that must not outlive whoever asked for it.

    python -I flows/dvc_api/guard.py RECORD COMMAND...

Standard input is a pipe whose other end the caller holds. When it closes, because the caller asked
for it, was cancelled, or was killed and could ask for nothing, the command's whole process group is
stopped: interrupted first, as from a keyboard, so that DVC takes its locks back and a stage removes
what is half written; then terminated; then killed. The same holds for what is left of the group
when the command itself was killed: DVC leaves the stage it runs behind.

RECORD is a file that exists while the command runs. Standard library alone, so that it starts in
milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PATIENCE = ((signal.SIGINT, 15.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
"""What a group is sent, and how many seconds it then has to end."""
_SET_CHILD_SUBREAPER = 36


def main(record: str, command: list[str]) -> int:
    """Run the command; its exit code, or 128 + the signal that ended it."""
    # what the group leaves behind comes to us, and not to an init that may never collect it
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, lambda *_: None
        )  # the caller decides, by the pipe; and a command inherits no ignored signal
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
    """End every process of the command's group; return when none is left."""
    for number, seconds in PATIENCE:
        if not _send(child.pid, number):
            return
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            _collect(child)
            if not _send(child.pid, 0):
                return
            time.sleep(0.05)


def _send(group: int, number: int) -> bool:
    """Signal the group; False if it has no process any more."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def _collect(child: subprocess.Popen[bytes]) -> None:
    """Take note of processes that ended, which until then count as members of their group."""
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

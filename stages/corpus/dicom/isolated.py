"""Frames decoded in a process of their own, one for each thread: a decoder that crashes or hangs is
the file's fault, not the stage's end.

What the decoder writes to standard error, which no filter of Python's would catch, is dropped.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from stages.corpus.quarantine.image_errors import ImageError

_WORKER: Final = Path(__file__).with_name("worker.py")
_PATIENCE: Final = 120.0
"""Seconds for a frame. The largest that is allowed takes a tenth of it."""
_mine = threading.local()


def decode_isolated(
    content: bytes, syntax: str, options: dict[str, Any]
) -> tuple[NDArray[Any], str]:
    """One encapsulated frame by pydicom's decoder with these options: the array, and its
    photometric interpretation.

    Raises ImageError if it cannot be decoded, or if the decoder crashes or does not end; the next
    frame gets another process then.
    """
    worker = _worker()
    reply: dict[str, Any] = {}
    data = b""
    late = threading.Timer(_PATIENCE, worker.kill)
    late.start()
    try:
        source, target = _pipes(worker)
        source.write(
            json.dumps({"syntax": syntax, "length": len(content), **options}).encode()
            + b"\n"
            + content
        )
        source.flush()
        reply = json.loads(target.readline() or b"{}")
        data = target.read(reply.get("length") or 0)
    except (OSError, ValueError):
        pass  # it has ended, or what it wrote was cut short
    finally:
        late.cancel()
    if "length" not in reply or len(data) != (reply["length"] or 0):
        worker.kill()
        worker.wait()
        raise ImageError("the pixel data crash their decoder, or keep it busy without end")
    if reply["length"] is None:
        raise ImageError("the pixel data are damaged, or not what the header says")
    return np.frombuffer(data, reply["dtype"]).reshape(reply["shape"]), reply["photometric"]


def _worker() -> subprocess.Popen[bytes]:
    """The process of this thread; it ends with its input, when this one does."""
    found: subprocess.Popen[bytes] | None = getattr(_mine, "worker", None)
    if found is None or found.poll() is not None:
        # -P: what lies beside the worker is not to take the place of installed modules
        command = [sys.executable, "-P", str(_WORKER)]
        found = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        _mine.worker = found
    return found


def _pipes(worker: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert worker.stdin is not None, "opened as a pipe"
    assert worker.stdout is not None, "opened as a pipe"
    return worker.stdin, worker.stdout

"""Decode frames in a separate process per thread, which a damaged file may crash or hang.

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
_TIMEOUT: Final = 120.0
"""Seconds for a frame. The largest that is allowed takes a tenth of it."""
_thread = threading.local()


def decode_isolated(
    content: bytes, syntax: str, options: dict[str, Any]
) -> tuple[NDArray[Any], str]:
    """Decode an encapsulated frame with pydicom's decoder; (array, photometric interpretation).

    Raises ImageError if the frame cannot be decoded, or if the decoder crashes or hangs; the next
    frame then gets a new process.
    """
    worker = _worker()
    request = json.dumps({"syntax": syntax, "length": len(content), **options}).encode()
    reply: dict[str, Any] = {}
    data = b""
    timeout = threading.Timer(_TIMEOUT, worker.kill)
    timeout.start()
    try:
        source, target = _pipes(worker)
        source.write(request + b"\n" + content)
        source.flush()
        reply = json.loads(target.readline() or b"{}")
        data = target.read(reply.get("length") or 0)
    except (OSError, ValueError):
        pass  # the process has ended, or its reply is truncated
    finally:
        timeout.cancel()
    if "length" not in reply or len(data) != (reply["length"] or 0):
        worker.kill()
        worker.wait()
        raise ImageError("the pixel data crash or hang their decoder")
    if reply["length"] is None:
        raise ImageError("the pixel data are damaged, or do not match the DICOM header")
    return np.frombuffer(data, reply["dtype"]).reshape(reply["shape"]), reply["photometric"]


def _worker() -> subprocess.Popen[bytes]:
    """Process of this thread; it ends with its input, at the latest when this process ends."""
    worker: subprocess.Popen[bytes] | None = getattr(_thread, "worker", None)
    if worker is None or worker.poll() is not None:
        # -P: modules beside the worker must not shadow installed ones
        command = [sys.executable, "-P", str(_WORKER)]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        _thread.worker = worker
    return worker


def _pipes(worker: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert worker.stdin is not None, "opened as a pipe"
    assert worker.stdout is not None, "opened as a pipe"
    return worker.stdin, worker.stdout

"""A process of its own that decodes frames with GDCM, which ends the whole process over some
damaged files.

Started by stages/corpus/dicom/isolated.py, by path: it needs nothing of this project. For each
frame it reads a line of JSON with the options of pydicom's decoder and then the bytes, and answers
with a line of JSON and the decoded bytes.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import IO, Any

from pydicom.pixels.decoders.base import get_decoder


def main() -> None:
    """Decode frames from standard input to standard output until the former ends."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        answer(json.loads(line), source, target)


def answer(asked: dict[str, Any], source: IO[bytes], target: IO[bytes]) -> None:
    """Decode one frame; a frame that cannot be decoded is answered by `length` null."""
    content = source.read(asked.pop("length"))
    reply: dict[str, Any] = {"length": None}
    data = b""
    try:
        found, facts = get_decoder(asked.pop("syntax")).as_array(content, index=0, **asked)
        data = found.tobytes()
        reply = {
            "length": len(data),
            "shape": found.shape,
            "dtype": found.dtype.str,
            "photometric": facts["photometric_interpretation"],
        }
    except Exception:  # noqa: S110  the answer says that it failed; why is for nobody to read
        pass
    target.write(json.dumps(reply).encode() + b"\n" + data)
    target.flush()


if __name__ == "__main__":
    main()

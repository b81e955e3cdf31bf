"""Process that decodes frames with GDCM, which crashes its process over some damaged files.

stages/corpus/dicom/isolated.py starts it by path: it imports nothing of this project. Per frame it
reads a line of JSON with the options of pydicom's decoder, then the frame's bytes, and writes a
line of JSON, then the decoded bytes.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import IO, Any

from pydicom.pixels.decoders.base import get_decoder


def main() -> None:
    """Decode frames from standard input to standard output until the input ends."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    while line := sys.stdin.buffer.readline():
        decode(json.loads(line), sys.stdin.buffer, sys.stdout.buffer)


def decode(options: dict[str, Any], source: IO[bytes], target: IO[bytes]) -> None:
    """Decode one frame; the reply to one that cannot be decoded has `length` null."""
    content = source.read(options.pop("length"))
    reply: dict[str, Any] = {"length": None}
    data = b""
    try:
        decoder = get_decoder(options.pop("syntax"))
        frame, properties = decoder.as_array(content, index=0, **options)
        data = frame.tobytes()
        reply = {
            "length": len(data),
            "shape": frame.shape,
            "dtype": frame.dtype.str,
            "photometric": properties["photometric_interpretation"],
        }
    except Exception:  # noqa: S110  the text may quote patient data; the reply says that it failed
        pass
    target.write(json.dumps(reply).encode() + b"\n" + data)
    target.flush()


if __name__ == "__main__":
    main()

"""Processes that end with their parent, even if it is killed."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PARENT_DEATH_SIGNAL: Final = 1


def end_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when its parent ends; False if `parent` has ended already.

    Linux only. Processes that this one starts are not affected.
    """
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent

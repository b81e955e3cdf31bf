"""Lock for imports within functions that several threads call."""

from __future__ import annotations

import threading
from typing import Final

IMPORT_LOCK: Final = threading.RLock()
"""Hold it while a function that `prefetch` runs imports a package.

pydicom and nibabel import their own modules in a circle. If two threads enter such a circle at
different modules, each waits for one that the other is importing; Python resolves that by giving
one of them a module that is not complete, and the import fails (CPython issue 83065).
"""

"""How a stage ends: results, or one clear message and an exit code other than 0."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

from stages.core.disk_space import free_bytes
from stages.core.errors import InputError


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main` and exit: 0 done, 1 bad input or a full disk, 130 interrupted. Bugs keep their traceback."""
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was kept; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = free_bytes(Path.cwd()) / 2**20
        sys.exit(
            f"error: no space left on the disk while writing {error.filename or 'an output'} ({free:.0f} MiB free); "
            "nothing half-written was kept. Free some space (`dvc gc --workspace` drops old results) and run again"
        )

"""Libraries of trainings and evaluations, imported once for all stages of a flow on CPUs.

A server (`stages.core.distributed.preloaded`) imports them while the first stages run, and stages
find it by an environment variable. It needs no supervision: stages that it does not serve import
for themselves, and it ends with the flow, even with one that is killed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flows.dvc_api.client import environment
from stages.core import layout
from stages.core.distributed.handover import MODULES, PRELOADED

SERVER: Final = "stages.core.distributed.preloaded"
FEWEST: Final = 3
"""Stages from which on a server saves time: it imports everything, an evaluation only a part."""
LOG: Final = layout.FLOWS / "preloaded.log"
"""What the server prints: why it ended, or served a stage not, and what libraries print."""


@contextmanager
def preloaded_libraries(
    root: Path, stages: Iterable[str], variables: Mapping[str, str] | None
) -> Iterator[dict[str, str]]:
    """Serve preloaded libraries to those of the named stages that can use them.

    Yields the environment in which stages find them: empty if too few would, if the workspace's
    code cannot serve them, or if `variables` is None. `variables`: what all these stages have in
    their environment beside this process's own, since libraries read it; None with GPUs.
    """
    served = [name for name in stages if f"stages.{name.partition('@')[0]}" in MODULES]
    code = root / f"{SERVER.replace('.', '/')}.py"
    if variables is None or len(served) < FEWEST or not code.is_file() or sys.platform != "linux":
        yield {}
        return
    # short, as the path of a socket must be, and for this user only
    folder = Path(tempfile.mkdtemp(prefix="med-r1-libraries-"))
    try:
        (root / LOG).parent.mkdir(parents=True, exist_ok=True)
        with (root / LOG).open("wb") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", SERVER, str(folder / "socket")],
                cwd=root,
                env=environment(variables),
                # ends the server when this process ends, for whatever reason
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                # a keyboard's interrupt is the flow's matter
                start_new_session=True,
            )
        try:
            yield {PRELOADED: str(folder / "socket")}
        finally:
            # its forks do not need it
            server.terminate()
            server.communicate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""Commands that operate the machine and its services."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from typer import Option

from flows.command_line.application import app, command

PANEL: Final = "Operate"


@command(app, "med-r1 doctor", "med-r1 doctor --fix", panel=PANEL, anywhere=True)
def doctor(
    fix: Annotated[
        bool, Option("--fix", help="Fix what can be fixed without losing anything.")
    ] = False,
    json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    silence: Annotated[
        float,
        Option(metavar="MINUTES", help="Time without heartbeat until a flow run counts as dead."),
    ] = 15,
) -> int:
    """Find what keeps stages from running well on this machine.

    Checks locks, orphaned processes, disk, GPUs and versions; changes nothing without --fix.

    Exit code: 1 if a problem remains, 0 if there are only warnings.
    """
    from flows.doctor.command import run

    return run(Path.cwd(), fix=fix, as_json=json, silence=silence)


@command(app, "med-r1 dashboard --port 4300", panel=PANEL)
def dashboard(
    host: Annotated[
        str, Option(help="Address to listen on; other than loopback needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(help="Port; the report is served on the next one.")] = 4200,
) -> int:
    """Serve Prefect's dashboard, a worker and the report.

    Runs until interrupted; only this machine can reach it unless --host is set.
    """
    from flows.dashboard import run

    return run(Path.cwd(), host, port)

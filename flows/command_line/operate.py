"""Commands that look after the machine and its services."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from typer import Option

from flows.command_line.application import app, command

PANEL: Final = "Operate"


@command(app, "med-r1 doctor", "med-r1 doctor --fix", panel=PANEL)
def doctor(
    fix: Annotated[
        bool, Option("--fix", help="Fix what can be fixed without losing anything.")
    ] = False,
    json: Annotated[bool, Option("--json", help="Print JSON.")] = False,
    silence: Annotated[
        float,
        Option(metavar="MINUTES", help="A flow run without a heartbeat for so long is dead."),
    ] = 15,
) -> int:
    """Find what keeps stages from running well on this machine.

    Looks at locks, orphaned processes, disk, GPUs and versions; changes nothing without --fix.

    Exit code: 1 if a problem remains; a warning alone is none.
    """
    from flows.doctor.command import run

    return run(Path.cwd(), fix=fix, as_json=json, silence=silence)


@command(app, "med-r1 dashboard --port 4300", panel=PANEL)
def dashboard(
    host: Annotated[
        str, Option(help="Address to listen on; any but this machine's needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(help="Port; the report is served on the next one.")] = 4200,
) -> int:
    """Serve Prefect's dashboard, a worker and the report.

    Until interrupted, and on this machine only unless --host names another address.
    """
    from flows.dashboard import run

    return run(Path.cwd(), host, port)

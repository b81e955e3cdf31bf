"""What keeps stages from running well here, and how to mend it.

    med-r1 doctor            look, change nothing
    med-r1 doctor --fix      and mend what can be mended without losing anything
    med-r1 doctor --json     for a program

The exit code is 0 if nothing is a problem, or no longer one; else 1. A warning alone is none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.doctor import leftovers, locks, machine, server
from flows.doctor.findings import Finding
from flows.dvc_api.graph import read_graph
from flows.dvc_api.output_sizes import read_output_sizes
from stages.core.errors import InputError

Check = Callable[[Path], list[Finding]]
_WIDTH: Final = 200
_STYLES: Final = {"ok": "green", "warning": "yellow", "problem": "bold red", "mended": "green"}


@dataclass(frozen=True)
class Diagnosis:
    """A finding and its outcome: `mended`, what was fixed; `failed`, why fixing failed."""

    finding: Finding
    mended: str = ""
    failed: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether something is still wrong."""
        return self.finding.level == "problem" and not self.mended


def pipeline(root: Path) -> list[Finding]:
    """Whether dvc.yaml, parameters and dvc.lock can be read."""
    if not (root / "dvc.yaml").is_file():
        return [
            Finding(
                "pipeline",
                "problem",
                f"{root / 'dvc.yaml'} is missing",
                "run from the project's root",
            )
        ]
    recorded, graph = read_output_sizes(root), read_graph(root)
    return [Finding("pipeline", "ok", f"{len(graph.stages)} stages, {len(recorded)} in dvc.lock")]


def checks(silence: timedelta = server.SILENCE) -> dict[str, Check]:
    """The checks by name; `silence`.

    Seconds without a heartbeat after which a flow run counts as dead.
    """
    return {
        "pipeline": pipeline,
        "orphans": leftovers.orphaned_processes,  # first, since what follows may be held by them
        "temporary servers": leftovers.temporary_servers,
        "records": leftovers.records,
        "DVC locks": locks.dvc_locks,
        "flow lock": locks.flow_lock,
        "slots": locks.slots,
        "incomplete outputs": leftovers.incomplete_outputs,
        "Prefect": lambda root: server.server(silence),
        "GPU": machine.gpu_parts,
        "disk": machine.disk,
        "versions": machine.versions,
    }


def examine(
    root: Path, fix: bool = False, wanted: Mapping[str, Check] | None = None
) -> list[Diagnosis]:
    """Findings of each check in the workspace `root`.

    With `fix`, safe remedies are applied in between.

    A check that fails is a problem of its own, and keeps none of the others from being made.
    """
    diagnoses = []
    for name, check in (checks() if wanted is None else wanted).items():
        try:
            findings = check(root)
        except (InputError, OSError, psutil.Error) as error:
            findings = [Finding(name, "problem", str(error))]
        diagnoses += [
            _mend(finding) if fix and finding.mend else Diagnosis(finding) for finding in findings
        ]
    return diagnoses


def _mend(finding: Finding) -> Diagnosis:
    assert finding.mend
    try:
        return Diagnosis(finding, mended=finding.mend())
    except Exception as error:  # whatever it was, the next finding may be mended all the same
        return Diagnosis(finding, failed=f"could not be mended: {error}")


def run(root: Path, *, fix: bool, as_json: bool, silence: float) -> int:
    """Examine a workspace and print what was found; the exit code.

    `silence`: in minutes, see `checks`.
    """
    diagnoses = examine(root, fix, checks(timedelta(minutes=silence)))
    if as_json:
        print(json.dumps([_as_dict(each) for each in diagnoses], ensure_ascii=False, indent=1))
    else:
        print_diagnoses(diagnoses)
    return int(any(each.is_problem for each in diagnoses))


def print_diagnoses(diagnoses: Sequence[Diagnosis]) -> None:
    """Print a row a finding, with what to do about it, and how many problems are left."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in diagnoses:
        level = "mended" if each.mended else each.finding.level
        lines = [each.finding.what, *(f"-> {line}" for line in (each.mended, each.failed) if line)]
        if not each.mended and each.finding.remedy:
            lines.append(f"-> {each.finding.remedy}")
        table.add_row(Text(level, _STYLES[level]), each.finding.check, Text("\n".join(lines)))
    console.print(table)
    console.print(sum_up(diagnoses), style="bold")


def sum_up(diagnoses: Sequence[Diagnosis]) -> str:
    """In a line: "2 problems, 1 warning, 1 mended; --fix mends 1 of them"."""
    problems = sum(each.is_problem for each in diagnoses)
    warnings = sum(each.finding.level == "warning" and not each.mended for each in diagnoses)
    mended = sum(bool(each.mended) for each in diagnoses)
    mendable = sum(
        bool(each.finding.mend) and not each.mended and not each.failed for each in diagnoses
    )
    parts = [
        _count(problems, "problem"),
        _count(warnings, "warning"),
        *([f"{mended} mended"] if mended else []),
    ]
    return ", ".join(parts) + (f"; --fix mends {mendable} of them" if mendable else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _as_dict(diagnosis: Diagnosis) -> dict[str, object]:
    found = diagnosis.finding
    return {
        "check": found.check,
        "level": found.level,
        "what": found.what,
        "remedy": found.remedy,
        "mendable": found.mend is not None,
        "mended": diagnosis.mended,
        "failed": diagnosis.failed,
    }

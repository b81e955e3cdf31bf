"""Diagnose what keeps stages from running well here, and fix it.

    med-r1 doctor            report only, change nothing
    med-r1 doctor --fix      also fix what can be fixed without losing anything
    med-r1 doctor --json     machine-readable report

The exit code is 1 if a problem remains, else 0. Warnings do not count as problems.
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
_STYLES: Final = {"ok": "green", "warning": "yellow", "problem": "bold red", "fixed": "green"}


@dataclass(frozen=True)
class Diagnosis:
    """A finding, and the outcome if its fix was applied.

    `fix_result`: what the fix did, empty if none was applied; `fix_error`: why the fix failed.
    """

    finding: Finding
    fix_result: str = ""
    fix_error: str = ""

    @property
    def is_problem(self) -> bool:
        """Whether something is still wrong."""
        return self.finding.level == "problem" and not self.fix_result


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
    sizes = read_output_sizes(root)
    graph = read_graph(root)
    return [Finding("pipeline", "ok", f"{len(graph.stages)} stages, {len(sizes)} in dvc.lock")]


def all_checks(silence: timedelta = server.SILENCE) -> dict[str, Check]:
    """All checks by name, in order.

    `silence`: time without a heartbeat after which a flow run counts as dead.
    """
    return {
        "pipeline": pipeline,
        "orphans": leftovers.orphaned_processes,  # first: orphans may hold the locks below
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
        "git": machine.code_commit,
    }


def examine(
    root: Path, fix: bool = False, checks: Mapping[str, Check] | None = None
) -> list[Diagnosis]:
    """Findings of `checks` (all if None) in the workspace `root`.

    With `fix`, the fixes of a check are applied before the next check looks. A check that raises
    is reported as a problem, and the others still run.
    """
    diagnoses = []
    for name, check in (all_checks() if checks is None else checks).items():
        try:
            findings = check(root)
        except (InputError, OSError, psutil.Error) as error:
            findings = [Finding(name, "problem", str(error))]
        diagnoses += [
            _apply_fix(finding) if fix and finding.fix else Diagnosis(finding)
            for finding in findings
        ]
    return diagnoses


def _apply_fix(finding: Finding) -> Diagnosis:
    assert finding.fix
    try:
        return Diagnosis(finding, fix_result=finding.fix())
    except Exception as error:  # one failed fix must not prevent the others
        return Diagnosis(finding, fix_error=f"could not be fixed: {error}")


def run(root: Path, *, fix: bool, as_json: bool, silence: float) -> int:
    """Examine a workspace and print the findings; the exit code.

    `silence`: in minutes, see `all_checks`.
    """
    diagnoses = examine(root, fix, all_checks(timedelta(minutes=silence)))
    if as_json:
        print(json.dumps([_as_dict(each) for each in diagnoses], ensure_ascii=False, indent=1))
    else:
        print_diagnoses(diagnoses)
    return int(any(each.is_problem for each in diagnoses))


def print_diagnoses(diagnoses: Sequence[Diagnosis]) -> None:
    """Print one row per finding, with its remedy, and the number of remaining problems."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in diagnoses:
        level = "fixed" if each.fix_result else each.finding.level
        remedy = "" if each.fix_result else each.finding.remedy
        notes = (each.fix_result, each.fix_error, remedy)
        lines = [each.finding.what, *(f"-> {note}" for note in notes if note)]
        table.add_row(Text(level, _STYLES[level]), each.finding.check, Text("\n".join(lines)))
    console.print(table)
    console.print(sum_up(diagnoses), style="bold")


def sum_up(diagnoses: Sequence[Diagnosis]) -> str:
    """One-line summary: "2 problems, 1 warning, 1 fixed; --fix can fix 1 of them"."""
    problems = sum(each.is_problem for each in diagnoses)
    warnings = sum(each.finding.level == "warning" and not each.fix_result for each in diagnoses)
    fixed = sum(bool(each.fix_result) for each in diagnoses)
    fixable = sum(
        bool(each.finding.fix) and not each.fix_result and not each.fix_error for each in diagnoses
    )
    parts = [_count(problems, "problem"), _count(warnings, "warning")]
    if fixed:
        parts.append(f"{fixed} fixed")
    return ", ".join(parts) + (f"; --fix can fix {fixable} of them" if fixable else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _as_dict(diagnosis: Diagnosis) -> dict[str, object]:
    finding = diagnosis.finding
    return {
        "check": finding.check,
        "level": finding.level,
        "what": finding.what,
        "remedy": finding.remedy,
        "fixable": finding.fix is not None,
        "fix_result": diagnosis.fix_result,
        "fix_error": diagnosis.fix_error,
    }

"""The commands `med-r1 champion`: show, promote, rollback and checkout."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.registry import champion, store
from flows.registry.champion import Champion
from flows.registry.snapshot import champion_lock
from stages.reporting.labels import percent


def show(root: Path) -> None:
    """Print the current champion: version, date, accuracies, and whether its weights are cached."""
    current = champion.require(root)
    pointer = champion.pointer(root)
    assert pointer
    console = Console(highlight=False)
    console.print(
        f"champion {current.version} of {', '.join(map(str, champion.versions(root)))}, since"
        f" {pointer.since}: {pointer.why}"
    )
    console.print(
        f"corpus md5:{current.corpus.md5} from {current.corpus.source}; commit"
        f" {current.git_commit}",
        soft_wrap=True,
    )
    table = Table(box=None)
    for head in ("checkpoint", "questions", "accuracy %", "macro %", "weights"):
        table.add_column(head, justify="left" if head in ("checkpoint", "weights") else "right")
    for name, entry in current.checkpoints.items():
        missing = store.missing(root, entry.model)
        table.add_row(
            name,
            str(entry.questions),
            percent(entry.accuracy),
            percent(entry.macro),
            f"{missing} files not in the cache" if missing else "in the cache",
        )
    console.print(table)


def promote(root: Path, why: str) -> None:
    """Make the current results the champion."""
    with champion_lock(root):
        _print_change(champion.promote(root, why))


def rollback(root: Path, to: int | None) -> None:
    """Make an earlier version, the predecessor or `to`, the champion."""
    with champion_lock(root):
        _print_change(champion.rollback(root, to))


def checkout(root: Path, name: str, folder: Path, number: int | None) -> None:
    """Restore the weights of the champion, or of version `number`, to `folder`."""
    version = champion.checkout(root, name, folder, number).version
    print(f"{name} of champion {version} -> {folder}")


def _print_change(current: Champion) -> None:
    print(f"champion {current.version} is in use; commit {champion.FOLDER}/ to record it")

"""Typer application behind `med-r1`: registration, exit codes, help in panels, completion of names.

Imports nothing heavy: completion in a shell and `--help` wait for every import.
"""

from __future__ import annotations

import functools
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, ParamSpec

import typer
from typer.core import TyperGroup

from stages.core import layout
from stages.core.cli import run_stage
from stages.core.errors import InputError

"""Copy of stages.profiles.schema.FOLDER, whose module imports all settings."""

PANELS: Final = ("Data", "Run", "Results", "Operate")

Parameters = ParamSpec("Parameters")
Command = Callable[Parameters, int | None]


class PanelGroup(TyperGroup):
    """Group whose help lists commands by panel, in the order of PANELS, also as plain text."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands, ordered by panel."""

        def rank(name: str) -> int:
            panel = _panel(self.commands[name])
            return PANELS.index(panel) if panel in PANELS else len(PANELS)

        return sorted(self.commands, key=rank)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section per panel."""
        panels: dict[str, list[tuple[str, str]]] = defaultdict(list)
        width = formatter.width - 6 - max(map(len, self.commands))
        for name in self.list_commands(ctx):
            entry = self.commands[name]
            panels[_panel(entry) or "Commands"].append((name, entry.get_short_help_str(width)))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _epilog(examples: Sequence[str]) -> str | None:
    if not examples:
        return None
    # \b: do not rewrap the lines
    return "\n".join(["\b", "Examples:", *(f"  {example}" for example in examples)])


def _panel(entry: Any) -> str | None:
    panel = entry.rich_help_panel  # a placeholder of Typer's if the group has none
    return panel if isinstance(panel, str) else None


def make_group(description: str, *examples: str) -> typer.Typer:
    """An empty group of commands, with rich help on a terminal and plain help elsewhere."""
    return typer.Typer(
        help=description,
        epilog=_epilog(examples),
        cls=PanelGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app: Final = make_group(
    "Train, evaluate and operate the Med-R1 checkpoints.",
    "med-r1 plan          what would run",
    "med-r1 reproduce     run it",
    "med-r1 report        the results",
)


def command(
    group: typer.Typer, *examples: str, panel: str | None = None, anywhere: bool = False
) -> Callable[[Command[Parameters]], Command[Parameters]]:
    """Register a function as a command of `group`; its docstring and `examples` are the help.

    The function returns the exit code, None for 0; `run_stage` maps errors to codes. Only a command
    that works `anywhere` may run outside the root of a project.
    """

    def register(function: Command[Parameters]) -> Command[Parameters]:
        @functools.wraps(function)
        def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
            def main() -> None:
                if not anywhere:
                    check_root(Path.cwd())
                sys.exit(function(*args, **kwargs))

            run_stage(main)

        group.command(epilog=_epilog(examples), rich_help_panel=panel)(run)
        return function

    return register


def check_root(folder: Path) -> None:
    """Raise InputError outside the root of a project, before anything is written."""
    if (folder / layout.PARAMS).is_file():
        return
    files = (layout.PARAMS, Path("dvc.yaml"))
    parents = folder.parents
    root = next((each for each in parents if all((each / file).is_file() for file in files)), None)
    remedy = (
        f"run `cd {shlex.quote(str(root))}` first"
        if root
        else "change to the folder of your clone first"
    )
    raise InputError(
        f"{folder} is not the root of a project, as it has no {layout.PARAMS}: {remedy}"
    )


def complete_checkpoint(incomplete: str) -> list[str]:
    """Completions from the checkpoints of params.yaml; none if the file cannot be read."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        settings = YAML(typ="safe").load(layout.PARAMS)
        names = list(settings["checkpoints"])
    except (OSError, YAMLError, KeyError, TypeError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_profile(incomplete: str) -> list[str]:
    """Completions from the profiles in the repository."""
    return sorted(path.stem for path in layout.PROFILES.glob(f"{incomplete}*.yaml"))

"""What the benchmarks' command lines share: a parser with `--json` and `--quick`, few messages."""

from __future__ import annotations

import warnings
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path


def build_parser(
    module: str, description: str | None, *, quick: str | None = None
) -> ArgumentParser:
    """A parser for `python -m benchmarks.<module>` with the module's docstring and `--json`.

    `quick`: what `--quick` measures, which ends within a minute; without it there is no `--quick`.
    """
    parser = ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=description,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    if quick is not None:
        parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def silence_libraries() -> None:
    """Hide messages of transformers and FutureWarnings, which would clutter the tables."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning)

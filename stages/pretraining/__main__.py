"""Train the embedded base from scratch (about half an hour on 2 cores).

Usage: python -m stages.pretraining [DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.core.cli import run_stage
from stages.core.outputs import atomic_directory
from stages.pretraining.pretrain import Recipe, run


def main() -> None:
    """Train the base and write it into a folder."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.pretraining",
        description=__doc__.splitlines()[0] if __doc__ else None,
    )
    parser.add_argument(
        "out",
        nargs="?",
        type=Path,
        default=Path("infra/base"),
        help="folder to write (default: %(default)s)",
    )
    parser.add_argument(
        "--width",
        type=int,
        help="width of its layers (default: 128, the embedded base; larger widths need a GPU)",
    )
    arguments = parser.parse_args()
    recipe = Recipe() if arguments.width is None else Recipe(width=arguments.width)
    with atomic_directory(arguments.out) as folder:
        run(recipe, folder)
    print(f"base written to {arguments.out}")


if __name__ == "__main__":
    run_stage(main)

"""Stage `base`: put the model every checkpoint starts from into models/base. `pretrain` makes the embedded one.

python -m stages.base                 copy base.source (a folder) or fetch it (a model id and revision)
python -m stages.base pretrain [DIR]  train the embedded base from scratch into DIR (about half an hour on 2 cores)
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from stages import layout
from stages.cli import run_stage
from stages.errors import InputError
from stages.outputs import whole_directory, write_json
from stages.params import Base, load_params
from stages.provenance import provenance

HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
"""All a checkpoint is opened with; no pickles, no code."""


def main() -> None:
    """Run the stage, or the embedded base's recipe."""
    arguments = argparse.ArgumentParser(
        prog="python -m stages.base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = arguments.add_subparsers(dest="command")
    recipe = commands.add_parser("pretrain", help="train the embedded base from scratch")
    recipe.add_argument("out", nargs="?", type=Path, default=Path("infra/base"), help="folder to write (default: %(default)s)")
    recipe.add_argument("--width", type=int, help="of its layers; the embedded one's is 128, and a larger one is for a GPU")
    given = arguments.parse_args()
    if given.command == "pretrain":
        _pretrain(given.out, given.width)
    else:
        _stage()


def _pretrain(out: Path, width: int | None) -> None:
    from stages.base.pretrain import Recipe, run  # imports torch

    recipe = Recipe() if width is None else Recipe(width=width)
    with whole_directory(out) as folder:
        run(recipe, folder)
    print(f"base written to {out}")


def _stage() -> None:
    base = load_params().base
    source = fetch(base)

    from stages.grpo.policy import check_policy_files, load_policy, load_processor, set_max_pixels  # imports torch

    check_policy_files(source)
    with whole_directory(layout.BASE_MODEL) as folder:
        for file in sorted(source.iterdir()):
            if any(file.match(pattern) for pattern in HUB_FILES):
                shutil.copy(file, folder)
        processor = load_processor(folder)
        if base.max_pixels is not None:
            set_max_pixels(processor, base.max_pixels)
            processor.save_pretrained(folder)
        model = load_policy(folder, dtype=base.dtype, attention=base.attention)
        write_json(folder / "provenance.json", provenance({"base": base}))
    print(f"{base.source} -> {layout.BASE_MODEL}: {type(model).__name__}, {model.num_parameters():,} parameters")


def fetch(base: Base) -> Path:
    """The folder that holds the base's files: `base.source` itself, or the hub's snapshot at `base.revision`.

    Raises InputError when the folder is missing, the revision is, or the hub cannot be reached and has no local copy.
    """
    folder = Path(base.source)
    if folder.is_dir():
        if base.revision is not None:
            raise InputError(f"base.revision = {base.revision!r} has no meaning for the folder {folder}: set it to null in params.yaml")
        return folder
    if base.source.count("/") != 1 or base.source.startswith((".", "/")):
        raise InputError(f"base.source = {base.source!r}: no such folder, and not a model id of the form owner/name")
    if base.revision is None:
        raise InputError(
            f"base.source = {base.source!r}: no such folder; for a model id set base.revision to the commit to use (40 hex digits)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(base.source, revision=base.revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"base.source = {base.source!r} at {base.revision}: neither on the hub nor in the local cache "
            f"({type(error).__name__}). Check the id, the revision and the network, or give a folder"
        ) from error


if __name__ == "__main__":
    run_stage(main)

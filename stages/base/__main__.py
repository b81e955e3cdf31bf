"""Stage `base`: put the model that every checkpoint starts from into models/base.

    python -m stages.base

Copies base.source if it is a folder, or downloads it if it is a model id, at base.revision;
`med-r1 base-commit ID` prints a commit for that. The embedded base in infra/base is made by
stages.pretraining.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from stages.base.code import drop_code
from stages.base.family import check_family
from stages.base.hub import COPIED_PATTERNS, is_model_id, snapshot
from stages.core import layout
from stages.core.cards.licence import read_licence
from stages.core.cli import run_stage, stage_parser
from stages.core.errors import InputError
from stages.core.outputs import atomic_directory, write_json
from stages.core.params import Base, load_params
from stages.core.provenance import collect_provenance
from stages.policy.weights import ORIGIN, weight_hashes

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""


def main() -> None:
    """Run the stage; there are no arguments."""
    stage_parser("base", __doc__).parse_args()
    base = load_params().base
    source = fetch(base)

    from stages.policy.loading import (
        check_policy_files,
        load_policy,
        load_processor,
        set_max_pixels,
    )  # imports torch

    check_policy_files(source)
    with atomic_directory(layout.BASE_MODEL) as folder:
        for file in sorted(source.iterdir()):
            if file.is_file() and any(file.match(pattern) for pattern in COPIED_PATTERNS):
                shutil.copyfile(file, folder / file.name)
        drop_code(folder, base.source)
        check_family(folder, base.source)
        processor = load_processor(folder)
        if base.max_pixels is not None:
            set_max_pixels(processor, base.max_pixels)
            processor.save_pretrained(folder)
        model = load_policy(folder, dtype=base.dtype, attention=base.attention)
        facts = {
            "source": base.source,
            "commit": base.revision,
            "licence": read_licence(source),
            "sha256": weight_hashes(folder),
        }
        write_json(folder / ORIGIN, facts)
    write_json(
        layout.training_provenance("base"),
        collect_provenance({"base": base}) | {"base_model": facts},
    )
    print(
        f"{base.source} -> {layout.BASE_MODEL}: {type(model).__name__}, {model.num_parameters():,}"
        " parameters"
    )


def fetch(base: Base) -> Path:
    """The folder with the base's files: `base.source`, or the hub's snapshot at `base.revision`.

    Raises InputError if the folder or the revision is missing, or if neither the local cache nor
    the hub has the model.
    """
    folder = Path(base.source)
    if folder.is_dir():
        if base.revision is not None:
            raise InputError(
                f"base.revision = {base.revision!r} does not apply to the folder {folder}: set"
                " it to null in params.yaml"
            )
        return folder
    if not is_model_id(base.source):
        raise InputError(
            f"base.source = {base.source!r}: no such folder, and not a model id of the form"
            " owner/name"
        )
    if base.revision is None:
        raise InputError(
            f"base.source = {base.source!r}: no such folder; for a model id set base.revision to"
            f" the commit to use (40 hex digits), as `med-r1 base-commit {base.source}` prints it"
        )
    return snapshot(base.source, base.revision, layout.BASE_MODEL)


if __name__ == "__main__":
    run_stage(main)

"""Stage `train@<checkpoint>`: GRPO or SFT on the checkpoint's train split, from the base.

    python -m stages.train ct
    python -m stages.train sft-ct       if params.yaml has it among checkpoints

Trains on the visible GPUs, or on the CPU. Several GPUs share a training, one process per GPU, as
set by grpo.parallel (docs/launch.md); the environment variable MED_R1_PROCESSES sets another number
of processes, on a CPU too.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final

from stages.core import layout
from stages.core.cards.model_card import checkpoint_card
from stages.core.cli import run_stage, stage_parser
from stages.core.code_version import stage_code
from stages.core.distributed.devices import check_gpus
from stages.core.distributed.launch import end_with_launcher, launch, processes
from stages.core.errors import InputError
from stages.core.outputs import atomic_directory, atomic_file, read_json, write_json
from stages.core.params import Grpo, Params, Sft, load_params
from stages.core.provenance import collect_provenance
from stages.core.services.tracking import check_tracking, tracked
from stages.corpus.dataset.image_store import exists
from stages.corpus.dataset.problems import parse_solution
from stages.corpus.dataset.split_files import images_of, read_split
from stages.grpo.parallel import (
    deepspeed_configuration,
    peer_errors_explained,
    prepare_deepspeed,
    prepare_processes,
)
from stages.policy.fingerprint import files_hash, fingerprint, prepare_state_folder
from stages.policy.weights import ORIGIN, weight_hashes
from stages.prompts.styles import Style

OUTPUTS_FORMAT: Final = 1
"""`stages.core.outputs.FORMAT` of the JSON that this stage writes."""

REMEDY: Final = (
    "re-run the same command to resume from the last saved state, with the same number of processes"
)


def main() -> None:
    """Train one checkpoint and write models/<checkpoint> and training/<checkpoint>.csv."""
    parser = stage_parser("train", __doc__)
    parser.add_argument("checkpoint", help="a key of checkpoints in params.yaml")
    name = parser.parse_args().checkpoint
    params = load_params()
    checkpoint = params.require_checkpoint(name)
    grpo = params.grpo_for(name)
    settings: dict[str, Grpo | Sft] = {"grpo": grpo}
    if checkpoint.method == "sft":
        settings["sft"] = params.sft_for(name)
    split = layout.split(checkpoint.axis, checkpoint.split, "train", params.splits.kind)
    rows = [_question(item, split) for item in read_split(split)]
    if not rows:
        _leave_out(name, split)
        return
    check_tracking(params.tracking)
    # Launch before anything initialises CUDA: it reads the visible GPUs only once, and the launcher
    # must not use GPU memory.
    if number := prepare_processes(grpo):
        launch(["stages.train", name], number, layout.SCRATCH / "launch" / name, REMEDY)
        return
    bfloat16_settings = []
    if grpo.bf16:
        bfloat16_settings.append("grpo.bf16 true")
    if params.base.dtype == "bfloat16":
        bfloat16_settings.append("base.dtype bfloat16")
    check_gpus(" and ".join(bfloat16_settings) or None)
    end_with_launcher()

    import torch

    from stages.grpo.resume import prune_checkpoints
    from stages.grpo.trainer import TrackingCallback, deterministic, save_policy, write_log
    from stages.policy.loading import check_policy_files, load_policy, load_processor

    torch.set_num_threads(params.base.threads)
    deterministic(grpo.seed)
    start = Path(checkpoint.start)
    check_policy_files(start, f"checkpoints.{name}.start")
    prepare_deepspeed(grpo)
    custom_masks = grpo.engine == "shared-prefix" and checkpoint.method == "grpo"
    policy = load_policy(
        start, dtype=params.base.dtype, attention=params.base.attention, custom_masks=custom_masks
    )
    processor = load_processor(start)
    scratch = layout.SCRATCH / "train" / name
    state = scratch / _fingerprint(params, settings, split, start)
    with peer_errors_explained(grpo):
        trainer = _trainer(policy, processor, rows, settings, params.prompt.style, state, name)
        main_process = trainer.accelerator.is_main_process
        # one process clears the states of other fingerprints before the others look for theirs
        with trainer.accelerator.main_process_first():
            prepare_state_folder(state)
            resumed = prune_checkpoints(state)
        if resumed and main_process:
            print(
                f"{name}: resuming from step {resumed.name.rpartition('-')[2]} (state in {state})",
                file=sys.stderr,
            )
        provenance = collect_provenance(
            {
                "splits.kind": params.splits.kind,
                "base": params.base,
                "prompt": params.prompt,
                **settings,
            }
        )
        provenance |= _base_model(start)
        provenance["processes"] = processes()
        with tracked(
            params, "train", name, provenance, identity=state.name, active=main_process
        ) as run:
            run.artifact(
                f"{name}-train",
                "dataset",
                lambda: {"corpus": provenance["corpus"], str(split): files_hash([split])},
            )
            run.artifact(start.name, "model", partial(weight_hashes, start))
            trainer.add_callback(TrackingCallback(run))
            _train(trainer, resumed, grpo, checkpoint.method)
            output = atomic_directory(layout.model(name)) if main_process else nullcontext(state)
            with output as folder:
                # every rank takes part in saving, but only the main process writes
                save_policy(trainer, processor, folder)
                if main_process:
                    _describe(name, folder, start, len(rows), params, provenance)
                    with atomic_file(layout.training_log(name)) as log:
                        write_log(trainer.state.log_history, log)
            run.artifact(name, "model", partial(weight_hashes, layout.model(name)))
    if main_process:
        shutil.rmtree(scratch)
        print(
            f"{name}: {trainer.state.global_step} steps on {len(rows)} questions ->"
            f" {layout.model(name)}"
        )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _leave_out(name: str, split: Path) -> None:
    """Write the outputs of a checkpoint whose split is left out for lack of data."""
    with atomic_directory(layout.model(name)) as folder:
        write_json(folder / layout.left_out(name).name, {"split": str(split)})
    with atomic_file(layout.training_log(name)) as log:
        log.write_text("", encoding="utf-8")
    write_json(layout.training_provenance(name), collect_provenance({}))
    print(f"{name}: left out, as {split} has too little data (matrix in params.yaml)")


def _describe(
    name: str, folder: Path, start: Path, count: int, params: Params, provenance: dict[str, Any]
) -> None:
    """Write what belongs to a checkpoint besides its weights: origin, licence, card, provenance.

    `count`: number of training questions.
    """
    if "base_model" in provenance:
        write_json(folder / ORIGIN, provenance["base_model"])
    for licence in sorted(start.glob("LICENSE*")):
        shutil.copyfile(licence, folder / licence.name)
    card = checkpoint_card(name, count, params, provenance)
    (folder / "README.md").write_text(card, encoding="utf-8")
    write_json(layout.training_provenance(name), provenance)


def _trainer(
    policy: Any,
    processor: Any,
    rows: list[dict[str, Any]],
    settings: Mapping[str, Grpo | Sft],
    style: Style,
    state: Path,
    name: str,
) -> Any:
    """The trainer of the checkpoint's method, ready to run."""
    grpo = settings["grpo"]
    sft = settings.get("sft")
    assert isinstance(grpo, Grpo)
    if isinstance(sft, Sft):
        from stages.grpo.sft import build_sft_trainer

        return build_sft_trainer(
            policy, processor, rows, grpo, sft, style, scratch=state, run_name=name
        )
    from stages.grpo.data.dataset import train_dataset
    from stages.grpo.trainer import build_trainer

    return build_trainer(
        policy, processor, train_dataset(rows, style), grpo, style, scratch=state, run_name=name
    )


def _train(trainer: Any, resumed: Path | None, grpo: Grpo, method: str) -> None:
    """Train; if GPU memory runs out, raise InputError with the settings to lower."""
    import torch

    try:
        trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    except torch.OutOfMemoryError as error:
        for_grpo = ""
        if method == "grpo":
            for_grpo = (
                f" or grpo.num_generations (now {grpo.num_generations}), set"
                " grpo.reuse_prompt_pass to false"
            )
        raise InputError(
            f"out of GPU memory at step {trainer.state.global_step + 1}"
            f" ({str(error).splitlines()[0]}). Lower grpo.prompts_per_device (now"
            f" {grpo.prompts_per_device}; raise grpo.gradient_accumulation_steps in"
            f" proportion){for_grpo} or set grpo.gradient_checkpointing to true"
        ) from error


def _fingerprint(
    params: Params, settings: Mapping[str, Grpo | Sft], split: Path, start: Path
) -> str:
    """Fingerprint of everything that determines the weights; see docs/architecture.md.

    It includes the number of processes, which determines the batches and the parts of the state,
    and the kind of device: numbers of one are not those of another.
    """
    import torch

    grpo = settings["grpo"]
    assert isinstance(grpo, Grpo)
    configuration = deepspeed_configuration(grpo)
    provenance = collect_provenance(
        {
            "prompt": params.prompt,
            "resize": params.resize,
            "volume": params.volume,
            "base": params.base,
            **settings,
        }
    )
    base = [path for path in start.iterdir() if path.is_file() and path.name != ORIGIN]
    return fingerprint(
        {name: provenance[name] for name in ("corpus", "params", "versions")}
        | {
            "split": files_hash([split]),
            "base": files_hash(base),
            "code": files_hash(stage_code("train")),
            "processes": processes(),
            "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
            "deepspeed": files_hash([configuration]) if configuration else None,
        }
    )


def _base_model(start: Path) -> dict[str, Any]:
    """Source, commit, licence and hashes of the initial policy's base; empty if not recorded."""
    path = start / ORIGIN
    origin = read_json(path, f"re-create {start}") if path.is_file() else None
    return {"base_model": origin} if isinstance(origin, dict) else {}


def _question(item: dict[str, Any], split: Path) -> dict[str, Any]:
    """One item of a split in the trainer's form; InputError if an image of it is missing."""
    images = images_of(item)
    for image in images:
        if not exists(image):
            raise InputError(
                f"{split}: {item['question_id']}: image {image} is missing; run `dvc repro resize`"
            )
    return {
        "images": images,
        "problem": item["problem"],
        "context": item.get("context"),
        "gold": parse_solution(item["solution"]),
        "options": item["options"],
    }


if __name__ == "__main__":
    run_stage(main)

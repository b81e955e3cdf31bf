"""Distributed training with TRL's trainers, and the diagnosis of lost ranks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stages.core.distributed.launch import launched, nodes, processes
from stages.core.distributed.ranks import wanted_processes
from stages.core.errors import InputError, LostPeerError
from stages.core.params import Grpo

if TYPE_CHECKING:
    import torch

CONFIGURATIONS: Final = Path(__file__).parents[2] / "infra" / "deepspeed"
_GONE: Final = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection was aborted|remote process exited",
    re.IGNORECASE,
)
_LATE: Final = re.compile(r"timed out|timeout", re.IGNORECASE)
_DISTRIBUTED: Final = re.compile(r"gloo|nccl|distributed|collective|store", re.IGNORECASE)


def deepspeed_configuration(grpo: Grpo) -> Path | None:
    """The file of settings that `grpo.parallel` names, if it is one of DeepSpeed's."""
    return CONFIGURATIONS / f"{grpo.parallel}.json" if grpo.parallel in ("zero2", "zero3") else None


def processes_to_launch(grpo: Grpo) -> int:
    """Number of ranks this process must launch; 0 if it trains itself, alone or as a rank.

    With `none`, GPUs but the first are put out of its sight. Raises InputError where `ddp` finds
    one GPU, several processes are there that `none` does not want, or DeepSpeed is missing.
    """
    parallel_arguments(grpo)
    if launched():
        if grpo.parallel == "none" and processes() > 1:
            raise InputError(
                f"grpo.parallel none, but {processes()} processes were started: start one, or set"
                " it to auto"
            )
        return 0
    if grpo.parallel == "none":
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        os.environ["CUDA_VISIBLE_DEVICES"] = first
        return 0
    wanted, hosts = wanted_processes(), nodes()
    if grpo.parallel == "ddp" and wanted * hosts < 2:
        raise InputError(
            "grpo.parallel ddp needs several GPUs, and here is one or none: see"
            " CUDA_VISIBLE_DEVICES, or set it to auto"
        )
    return wanted if wanted * hosts > 1 or deepspeed_configuration(grpo) else 0


def parallel_arguments(grpo: Grpo) -> dict[str, Any]:
    """`grpo.parallel` in the words of TRL's trainers.

    InputError without DeepSpeed where it is asked for.
    """
    configuration = deepspeed_configuration(grpo)
    if configuration and util.find_spec("deepspeed") is None:
        raise InputError(
            f"grpo.parallel {grpo.parallel} needs the package deepspeed: `pip install"
            " --no-build-isolation '.[gpu]'`, or set it to auto"
        )
    return {
        "deepspeed": configuration and str(configuration),
        "ddp_timeout": max(round(grpo.timeout_minutes * 60), 1),
        # every question has an image, so that every pass uses every weight: nothing to search for,
        # and an error instead of a wait if not
        "ddp_find_unused_parameters": False,
    }


def prepare_deepspeed(grpo: Grpo) -> None:
    """Prepare DeepSpeed before its import: CPU accelerator without a GPU.

    Load tensors only from states.
    """
    if deepspeed_configuration(grpo) is None:
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # it reads its states with pickle, unless torch is told not to
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def join_deepspeed(grpo: Grpo, config: Any) -> None:
    """Initialise DeepSpeed's process group before a model is loaded; on a CPU nobody else does."""
    if deepspeed_configuration(grpo) is None:
        return
    import deepspeed
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # what its states hold beside tensors: a number, a name and two offsets
    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
    assert config.device  # asked for the first time, the processes join
    deepspeed.init_distributed()


def gather_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """The trained weights by name, whole on the first process; all have to call it.

    Under `bf16` DeepSpeed computes with weights rounded to 16 bits and keeps those that it trains
    in 32: these are the ones. A weight that is not trained is as it was rounded.
    """
    state = dict(trainer.accelerator.get_state_dict(trainer.model_wrapped) or {})
    if not (trainer.is_deepspeed_enabled and trainer.args.bf16):
        return state
    from deepspeed.utils import safe_get_full_fp32_param

    gathered: dict[int, torch.Tensor | None] = {}
    for name, parameter in trainer.accelerator.unwrap_model(trainer.model_wrapped).named_parameters(
        remove_duplicate=False
    ):
        if id(parameter) not in gathered:  # a tied weight stands under two names
            whole = safe_get_full_fp32_param(
                parameter
            )  # all processes have a part; None if it is not trained
            gathered[id(parameter)] = (
                None if whole is None or name not in state else whole.detach().to("cpu", copy=True)
            )
        if (kept := gathered[id(parameter)]) is not None and name in state:
            state[name] = kept
    return state


@contextmanager
def peer_errors_explained(grpo: Grpo) -> Iterator[None]:
    """Replace errors caused by another rank's end or silence by an InputError."""
    try:
        yield
    except RuntimeError as error:
        if explained := explain_peer_error(error, grpo):
            raise explained from error
        raise


def explain_peer_error(error: RuntimeError, grpo: Grpo) -> InputError | None:
    """LostPeerError if a peer ended, InputError after a timeout, None for an error of this rank.

    torch raises gloo's failures as plain RuntimeError and NCCL's as one type for all causes, so the
    text is the only source; it is compared here only. tests/stages/test_train.py kills a process of
    the installed torch.
    """
    text = str(error)
    if processes() == 1 or not _DISTRIBUTED.search(text):
        return None
    rank, first = int(os.environ.get("RANK", "0")), text.splitlines()[0][:200]
    who = f"process {rank + 1} of {processes()} (rank {rank})"
    if _GONE.search(text):
        return LostPeerError(f"{who} lost the other processes ({first})")
    if _LATE.search(text):
        return InputError(
            f"{who} waited {grpo.timeout_minutes:g} minutes for the others ({first}): one of them"
            " hangs or is far slower. See with `nvidia-smi` and `py-spy dump` what it does; if it"
            " is only slow, raise grpo.timeout_minutes. NCCL_DEBUG=INFO says what NCCL waits for"
        )
    return None

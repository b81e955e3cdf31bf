"""Multi-process training: settings for TRL's trainers, DeepSpeed, and errors caused by peers."""

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
_PEER_GONE: Final = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection was aborted|remote process exited",
    re.IGNORECASE,
)
_TIMED_OUT: Final = re.compile(r"timed out|timeout", re.IGNORECASE)
_DISTRIBUTED: Final = re.compile(r"gloo|nccl|distributed|collective|store", re.IGNORECASE)


def deepspeed_configuration(grpo: Grpo) -> Path | None:
    """DeepSpeed's configuration file for `grpo.parallel`; None if it does not use DeepSpeed."""
    return CONFIGURATIONS / f"{grpo.parallel}.json" if grpo.parallel in ("zero2", "zero3") else None


def prepare_processes(grpo: Grpo) -> int:
    """The number of processes to start for a training; 0 if this one trains itself.

    With `none` it also hides all GPUs but the first from this process. Raises InputError if `ddp`
    has one GPU only, if `none` was started as several processes, or if DeepSpeed is missing.
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
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[0]
        return 0
    wanted = wanted_processes()
    several = wanted * nodes() > 1
    if grpo.parallel == "ddp" and not several:
        raise InputError(
            "grpo.parallel ddp needs several GPUs, and at most one is visible: see"
            " CUDA_VISIBLE_DEVICES, or set it to auto"
        )
    return wanted if several or deepspeed_configuration(grpo) else 0


def parallel_arguments(grpo: Grpo) -> dict[str, Any]:
    """`grpo.parallel` as arguments of TRL's trainers.

    Raises InputError if it needs DeepSpeed and that is missing.
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
        # every question has an image, so every pass uses every weight: there is nothing to search
        # for, and if there were, an error is better than a hang
        "ddp_find_unused_parameters": False,
    }


def prepare_deepspeed(grpo: Grpo) -> None:
    """Set DeepSpeed's environment before it is imported.

    It computes on the CPU if there is no GPU, and unpickles nothing but tensors from its states.
    """
    if deepspeed_configuration(grpo) is None:
        return
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed reads its states with torch.load and sets no weights_only
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


def join_deepspeed(grpo: Grpo, config: Any) -> None:
    """Let DeepSpeed join the process group of TRL's `config`, before TRL loads the reference.

    On a CPU nothing else initialises DeepSpeed's side of it.
    """
    if deepspeed_configuration(grpo) is None:
        return
    import deepspeed
    import torch
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    # what its states contain besides tensors: a number, an enum and two offsets
    torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
    assert config.device  # its first access joins the process group
    deepspeed.init_distributed()


def gather_weights(trainer: Any) -> dict[str, torch.Tensor]:
    """The trained weights by name, complete on the first process; all processes must call it.

    With `bf16`, DeepSpeed computes with weights rounded to 16 bits and trains a copy in 32 bits:
    this returns the copy. Weights that are not trained are returned rounded.
    """
    state = dict(trainer.accelerator.get_state_dict(trainer.model_wrapped) or {})
    if not (trainer.is_deepspeed_enabled and trainer.args.bf16):
        return state
    from deepspeed.utils import safe_get_full_fp32_param

    policy = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    gathered: dict[int, torch.Tensor | None] = {}  # by id: a tied weight has two names
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        if id(parameter) not in gathered:
            # a collective: each process holds a part; None if the weight is not trained
            full = safe_get_full_fp32_param(parameter)
            keep = full is not None and name in state
            gathered[id(parameter)] = full.detach().to("cpu", copy=True) if keep else None
        weight = gathered[id(parameter)]
        if weight is not None and name in state:
            state[name] = weight
    return state


@contextmanager
def peer_errors_explained(grpo: Grpo) -> Iterator[None]:
    """Raise an InputError where another process ended or did not answer, and torch fails here."""
    try:
        yield
    except RuntimeError as error:
        if explained := explain_peer_error(error, grpo):
            raise explained from error
        raise


def explain_peer_error(error: RuntimeError, grpo: Grpo) -> InputError | None:
    """LostPeerError if another process is gone, InputError after a timeout, None for other errors.

    torch raises gloo's failures as plain RuntimeError and NCCL's as one type for all causes, so the
    text is the only source; it is read here and nowhere else. tests/stages/test_train.py kills a
    process of the installed torch.
    """
    text = str(error)
    if processes() == 1 or not _DISTRIBUTED.search(text):
        return None
    rank = int(os.environ.get("RANK", "0"))
    cause = text.splitlines()[0][:200]
    process = f"process {rank + 1} of {processes()} (rank {rank})"
    if _PEER_GONE.search(text):
        return LostPeerError(f"{process} lost the other processes ({cause})")
    if _TIMED_OUT.search(text):
        return InputError(
            f"{process} waited {grpo.timeout_minutes:g} minutes for the others ({cause}): one of"
            " them hangs or is far slower. Inspect it with `nvidia-smi` and `py-spy dump`; if it is"
            " only slow, raise grpo.timeout_minutes. NCCL_DEBUG=INFO logs what NCCL waits for"
        )
    return None

"""Durations of trainings and evaluations by the estimate of the profile that is set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flows.scheduling.gpu_share import known_profile
from stages.core.machine import query_gpus
from stages.profiles.measured import FILE, read_measured
from stages.profiles.needs import needs

_STARTS = "starts"


def profile_seconds(root: Path, names: Iterable[str]) -> dict[str, float]:
    """Stage -> seconds on one GPU of those in `names` that train or evaluate.

    As `med-r1 profile` estimates them, for the GPUs of this machine or else the reference: all
    trainings alike, as the sizes of splits are not known yet. Empty if no profile knows the sizes
    of model and corpus.
    """
    known = known_profile(root)
    if known is None:
        return {}
    params, profile = known
    if profile.model is None or profile.scale is None:
        return {}
    gpu = next(iter(query_gpus("name", timeout_s=10)), "")
    measured = read_measured(params, gpu, root / FILE)
    estimate = needs(params, profile.model, profile.scale, gpu, measured)
    training = 3600 * estimate.training / len(params.checkpoints)
    # each checkpoint answers the questions of its axis, the base those of all axes with a one
    axes = {entry.axis for entry in params.checkpoints.values()}
    start = 3600 * estimate.evaluation_parts[_STARTS] / len(params.evaluations)
    answers = 3600 * estimate.evaluation - start * len(params.evaluations)
    of_axis = answers / (len(params.checkpoints) + len(axes))
    seconds = {}
    for name in names:
        group, _, key = name.partition("@")
        if group == "train":
            seconds[name] = training
        elif group == "evaluate":
            seconds[name] = start + of_axis * (len(axes) if key not in params.checkpoints else 1)
    return seconds

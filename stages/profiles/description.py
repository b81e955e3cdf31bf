"""What a run of a profile needs, in words: disk, GPU memory, GPU-hours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages.core.cards.licence import EMBEDDED
from stages.core.machine import format_bytes
from stages.core.params import Params
from stages.profiles.checks import Machine
from stages.profiles.measured import FILE, read_measured
from stages.profiles.needs import Needs, disk, needs
from stages.profiles.schema import Profile
from stages.profiles.times import foresees
from stages.profiles.variants import describe_answers, expected_answers


def describe_needs(
    profile: Profile, params: Params, machine: Machine, root: Path = Path()
) -> Iterator[str]:
    """What the run needs, line by line; `root` may have measured rates."""
    outputs = disk(params, profile, len(machine.gpus))
    total = format_bytes(sum(outputs.values()))
    yield f"disk: about {total} besides the downloads: {_format_parts(outputs)}"
    if profile.model is None or profile.scale is None:
        if params.base.source == EMBEDDED:
            yield "GPU: none is needed"
        else:
            unknown = "corpus" if profile.model else "model"
            yield f"GPU: no estimate, as the profile has no size of its {unknown}"
        return
    name = machine.gpus[0].name if machine.gpus else ""
    measured = read_measured(params, name, root / FILE)
    estimate = needs(params, profile.model, profile.scale, name, measured)
    parts = _format_parts(estimate.memory)
    yield f"GPU memory: about {format_bytes(estimate.bytes)} per training: {parts}"
    if estimate.images.most > 1:
        mean, most = estimate.images
        yield (
            f"images: {mean:.3g} a question on average, for the hours, and {most} at most, for the"
            " memory"
        )
    expected = expected_answers(params, profile.scale)
    total_answers = sum(count.answers for count in expected.values())
    yield (
        f"answers per test question and policy: {total_answers:.3g}, for the hours to test:"
        f" {describe_answers(expected, digits=2)}"
    )
    hours = estimate.training + estimate.evaluation
    if estimate.gpu in name:
        count = len(machine.gpus)
        where = f"on the {count} x {name} found, {hours / count:.1f} hours"
    elif name:
        where = f"on an {estimate.gpu}: {name} is not in the table"
    else:
        where = f"on an {estimate.gpu}: no GPU was found here"
    yield (
        f"GPU-hours: about {hours:.1f} ({estimate.training:.1f} to train,"
        f" {estimate.evaluation:.1f} to test), {where}"
    )
    yield f"  to train: {_format_hours(estimate.training_parts)}"
    if foresees(params):
        without = params.model_copy(
            update={"grpo": params.grpo.model_copy(update={"draft_nodes": 0})}
        )
        hours = needs(without, profile.model, profile.scale, name).training
        yield (
            "  that is with all completions foreseen by drafts; with none, as before a policy has"
            f" learnt the answer format, {hours:.1f} h to train (estimated)"
        )
    yield f"  to test: {_format_hours(estimate.evaluation_parts)}"
    yield _source(estimate, name)


def _source(estimate: Needs, name: str) -> str:
    """Whether the hours are measured or estimated."""
    rates = estimate.measured
    found = {
        "steps": rates.step_seconds,
        "sampling passes": rates.pass_seconds,
        "answers": rates.questions_per_second,
    }
    measured = [what for what, rate in found.items() if rate is not None]
    if measured:
        return (
            f"Measured on {name} ({FILE}): {', '.join(measured)}. All else is estimated;"
            " stages/profiles/times.py has the assumptions."
        )
    return (
        "These are estimates, right to a factor of about two; stages/profiles/times.py has the"
        " assumptions. `python -m benchmarks.gpu` measures the rates."
    )


def _format_hours(parts: dict[str, float]) -> str:
    return ", ".join(f"{what} {hours:.2f} h" for what, hours in parts.items() if hours >= 0.005)


def _format_parts(sizes: dict[str, int]) -> str:
    return ", ".join(f"{what} {format_bytes(size)}" for what, size in sizes.items() if size)

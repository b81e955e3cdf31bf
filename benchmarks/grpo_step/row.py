"""One row of the results: the implementations of a step at one group size and completion length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.grpo_step.clock import PARTS, PeakMemory
from benchmarks.grpo_step.equivalence import Differences, compare
from benchmarks.grpo_step.flops import Way, costs, per_prompt
from benchmarks.grpo_step.g_copies import GCopies
from benchmarks.grpo_step.trace import trace
from benchmarks.grpo_step.trainers import TrainerStep
from benchmarks.grpo_step.training import measure_limit, measure_training, trace_training

if TYPE_CHECKING:
    from benchmarks.grpo_step.measure import Bench

Step = GCopies | TrainerStep
Seconds = dict[Way, list[dict[str, float]]]
"""Implementation -> seconds by part of each of its steps."""
Memory = dict[Way, dict[str, int]]
"""Implementation -> peak bytes, see `PeakMemory`."""


def measure_row(
    setup: Bench, group: int, completion: int, rate: float, report: Callable[[str], None]
) -> dict[str, Any]:
    """Measure all implementations; one that does not fit into the GPU's memory is named.

    `rate`: peak FLOP/s of the device, for the MFU.
    """
    plan = setup.plan
    steps: Any = setup.steps(group, completion)
    compared = partial(compare, steps["shared"], steps["g_copies"], setup.examples[:1])
    differences: Mapping[str, object]
    differences = setup.attempt(compared) or dict.fromkeys(Differences.__annotations__)
    cell = f"G={group} C={completion} images={setup.images}"
    times, memory = run_steps(setup, steps, cell, report)
    seconds = {
        way: {part: median(run[part] for run in each) for part in ("step", *PARTS)}
        for way, each in times.items()
    }
    details: dict[str, Any] = {}
    nodes = 0
    if "drafted" in seconds:
        nodes = steps["drafted"].nodes
        details["drafts"] = {**steps["drafted"].sampled, "nodes": nodes}
    expected = list(plan.ways)
    if setup.setting.profile is not None:
        expected.append("training")
        details |= _as_profile(setup, group, completion, seconds, memory)
        report(f"{cell}: training {seconds.get('training', {}).get('step', float('nan')):.2f} s")
        details["kernels"] = _kernels(setup, steps, group, completion, seconds)
    model = costs(setup.policy.config)
    prompt = round(setup.prompt_tokens())
    sizes = (prompt, completion, group, nodes, setup.images)
    flops: dict[Way, float] = {
        way: plan.prompts * per_prompt(_counted_as(way, seconds), model, *sizes) for way in seconds
    }
    return {
        "model": plan.model,
        "group_size": group,
        "completion_tokens": completion,
        "images": setup.images,
        "prompt_tokens": prompt,
        "trl_prompts_per_pass": steps["trl"] and steps["trl"].prompts_per_pass,
        "does_not_fit": [way for way in expected if way not in seconds],
        **figures(seconds, flops, plan.prompts, group * completion, rate),
        **differences,
        **details,
        "seconds": seconds,
        "peak_memory_bytes": memory,
    }


def run_steps(
    setup: Bench,
    steps: Mapping[Way, Step | None],
    cell: str,
    report: Callable[[str], None],
) -> tuple[Seconds, Memory]:
    """Time the steps of all implementations in turn, after a warm-up.

    One that does not fit into the GPU's memory, at first or later, has no result.
    """

    def warm_up(step: Step) -> bool:
        step.backward(setup.examples[:1])
        setup.update()
        return True

    def run(step: Step) -> tuple[dict[str, float], PeakMemory]:
        with PeakMemory(setup.device) as peak:
            seconds = setup.timed(step)
        return seconds, peak

    fitting: dict[Way, Step] = {}
    for way in setup.plan.ways:
        step = steps[way]
        if step is not None and setup.attempt(partial(warm_up, step)):
            fitting[way] = step
    times: Seconds = {way: [] for way in fitting}
    memory: Memory = {way: {"above_start": 0, "total": 0} for way in fitting}
    for repeat in range(setup.plan.repeats):
        for way, step in list(fitting.items()):
            result = setup.attempt(partial(run, step))
            if result is None:
                del fitting[way], times[way], memory[way]
                continue
            seconds, peak = result
            times[way].append(seconds)
            memory[way] = {
                "above_start": max(memory[way]["above_start"], peak.above_start),
                "total": max(memory[way]["total"], peak.total),
            }
        progress = ", ".join(f"{way} {times[way][-1]['step']:.2f} s" for way in fitting)
        report(f"{cell}, {repeat + 1} of {setup.plan.repeats}: {progress}")
    return times, memory


def _as_profile(
    setup: Bench,
    group: int,
    completion: int,
    seconds: dict[Way, dict[str, float]],
    memory: Memory,
) -> dict[str, Any]:
    """Measure a training as the profile runs it, into `seconds` and `memory`; and its details."""
    training = setup.attempt(partial(measure_training, setup, group, completion))
    if training is not None:
        seconds["training"] = {"step": training.pop("seconds")}
        memory["training"] = training.pop("memory")
    return {
        "training": training,
        "memory_at_limit": setup.attempt(partial(measure_limit, setup, group)),
    }


def _kernels(
    setup: Bench,
    steps: Mapping[Way, Step | None],
    group: int,
    completion: int,
    seconds: Mapping[Way, Any],
) -> dict[Way, dict[str, float] | None]:
    """Kernels of the steps, and per step of a training without thoughts."""
    kernels: dict[Way, dict[str, float] | None] = {}
    for way in setup.plan.traced:
        step = steps[way]
        if way in seconds and step is not None:
            kernels[way] = setup.attempt(partial(_trace, setup, step))
    if "drafted" in seconds and "training" in seconds:
        kernels["training"] = setup.attempt(partial(trace_training, setup, group, completion))
    return kernels


def _trace(setup: Bench, step: Step) -> dict[str, float] | None:
    setup.clock.by_part = False
    try:
        return trace(setup.device, lambda: setup.step(step))
    finally:
        setup.clock.by_part = True


def _counted_as(way: Way, seconds: Mapping[Way, Any]) -> Way:
    """The single step whose FLOPs count for a way: a training's are those of its own steps."""
    if way != "training":
        return way
    return "drafted" if "drafted" in seconds else "shared"


def figures(
    seconds: Mapping[Way, Mapping[str, float]],
    flops: Mapping[Way, float],
    prompts: int,
    tokens: int,
    rate: float,
) -> dict[str, Any]:
    """Derived figures of steps over `prompts` prompts with `tokens` completion tokens each.

    `mfu`: executed FLOPs over the peak in the time of the step; `bound_vs_*`: ratio of FLOPs;
    `largest_in_ours`: the longest part of our step with its share. None for what did not fit.
    """
    step = {way: each["step"] for way, each in seconds.items()}
    ratios: dict[str, float | None] = {}
    baselines: tuple[Way, ...] = ("g_copies", "trl")
    for way in baselines:
        both = way in step and "shared" in step
        ratios[f"speedup_vs_{way}"] = step[way] / step["shared"] if both else None
        ratios[f"bound_vs_{way}"] = flops[way] / flops["shared"] if both else None
    return {
        **ratios,
        "largest_in_ours": _largest(seconds["shared"]) if "shared" in seconds else None,
        "ms_per_prompt": {way: 1000 * step[way] / prompts for way in step},
        "completion_tokens_per_second": {way: prompts * tokens / step[way] for way in step},
        "flops_per_step": dict(flops),
        "mfu": {way: flops[way] / (step[way] * rate) for way in step},
    }


def _largest(seconds: Mapping[str, float]) -> dict[str, Any]:
    """The longest part of a step, and its share."""
    part = max(PARTS, key=seconds.__getitem__)
    return {"part": part, "share": seconds[part] / sum(seconds[each] for each in PARTS)}

"""Dry run: what would run now, why, in what order, for how long and at what cost.

    med-r1 plan                                    everything
    med-r1 plan --only 'train@*' --slots 2         these and what they need, two trainings at once
    med-r1 plan --json                             machine-readable

Changes nothing. DVC decides what is stale; the order is that of `flows.reproduce`, whose scheduler
runs here on a virtual clock.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from flows.dvc_api.client import Reasons, read_status
from flows.dvc_api.graph import Graph, read_graph
from flows.dvc_api.output_sizes import OutputSizes, free_space, out_size, read_output_sizes
from flows.dvc_api.run_cache import restorable
from flows.dvc_api.stale_reasons import explain_staleness
from flows.planning.answers import answers_of, describe
from flows.planning.answers import as_json as answers_as_json
from flows.planning.model import Estimate, Plan, Step
from flows.planning.profile_seconds import profile_seconds
from flows.planning.table import FULL_SCALE, print_plan
from flows.scheduling import durations
from flows.scheduling.schedule import Capacity
from flows.scheduling.simulation import simulate
from flows.scheduling.slots import find_slots
from stages.core import layout
from stages.core.cores import available_cores
from stages.core.errors import InputError
from stages.core.git import uncommitted_files
from stages.core.machine import format_bytes
from stages.core.outputs import read_json
from stages.core.params import Params, load_params
from stages.core.provenance import CODE


def make_plan(
    root: Path,
    only: Sequence[str] | None = None,
    slots: int | None = None,
    changed: Sequence[str] = (),
    slots_per_gpu: int = 1,
) -> Plan:
    """The plan for the workspace at `root`.

    Args:
        root: Folder with dvc.yaml.
        only: Stages to bring up to date with all they need, by name, group or glob; all if None.
        slots: GPU stages at once; the default of `flows.reproduce` if None.
        changed: Stages to plan as if they had changed, such as data.dvc before new data is fetched:
            the stages after them are those that may run.
        slots_per_gpu: Stages that share a GPU.

    Raises:
        InputError: No pipeline, unreadable dvc.lock or params.yaml, unknown stage, more slots than
            GPUs have, or no room for a training in its share of one.
    """
    sizes = _check(root)
    gpu_slots = find_slots(root, slots, slots_per_gpu=slots_per_gpu)
    graph = read_graph(root)
    targets = graph.upstream(graph.select(only)) if only else set(graph.stages)
    assumed: dict[str, Reasons] = {name: {"assumed to change": {}} for name in changed}
    stale = {
        name: reasons for name, reasons in (assumed | read_status(root)).items() if name in targets
    }
    names = graph.in_order(graph.downstream(stale) & targets)
    selected = set(names)
    after = {name: tuple(graph.in_order(graph.needs[name] & selected)) for name in names}
    # the run cache is decidable only for stages whose inputs are up to date
    cached = restorable(root, (name for name in names if not after[name])) if names else set()
    seconds, estimates = _estimate(root, graph, names, cached)
    capacity = Capacity(len(gpu_slots.names), available_cores())
    starts = simulate(graph, names, seconds, capacity)
    waves: dict[str, int] = {}
    for name in names:
        waves[name] = 1 + max((waves[each] for each in after[name]), default=0)
    steps = [
        Step(
            name=name,
            description=graph.stages[name].description,
            why=explain_staleness(
                graph, stale.get(name, {}), after[name], name in sizes or name.endswith(".dvc")
            ),
            reasons=stale.get(name, {}),
            after=after[name],
            wave=waves[name],
            start=starts[name],
            seconds=seconds[name],
            estimate=estimates[name],
            gpus=graph.stages[name].gpus,
            bytes=out_size(root, graph.stages[name], sizes),
        )
        for name in names
    ]
    written = sum(step.bytes or 0 for step in steps)
    free = free_space(root)
    notes = _notes(steps)
    answers = None
    if _has_schema(root):
        params = load_params(root / layout.PARAMS)
        left_out = _left_out(root, params, selected)
        answers = answers_of(root, params, names, left_out)
        notes += _describe_left_out(left_out) + describe(root, params, names, answers)
    return Plan(
        steps=tuple(sorted(steps, key=lambda step: (step.start, step.wave))),
        up_to_date=tuple(graph.in_order(targets - selected)),
        slots=gpu_slots.names,
        devices=gpu_slots.are_gpus,
        seconds=max((step.start + step.seconds for step in steps), default=0.0),
        gpu_hours=sum(step.gpus * step.seconds for step in steps) / 3600 / slots_per_gpu,
        bytes=written,
        bytes_free=free,
        warnings=tuple(_warnings(root, steps, gpu_slots.most_per_stage, written, free)),
        notes=tuple(notes),
        slots_per_gpu=slots_per_gpu,
        answers=answers_as_json(answers),
    )


def _check(root: Path) -> OutputSizes:
    """Output sizes in dvc.lock; InputError for files that DVC or a stage would reject late."""
    if not (root / "dvc.yaml").is_file():
        raise InputError(f"{root / 'dvc.yaml'} is missing: run from the project's root")
    sizes = read_output_sizes(root)
    if _has_schema(root):
        load_params(root / layout.PARAMS)
    return sizes


def _has_schema(root: Path) -> bool:
    """Whether params.yaml is this repository's; other pipelines have no schema for theirs."""
    return (root / "stages" / "core" / "params.py").is_file()


def _estimate(
    root: Path, graph: Graph, names: Sequence[str], cached: set[str]
) -> tuple[dict[str, float], dict[str, Estimate]]:
    """Stage -> seconds, and stage -> source of that number."""
    recorded = durations.read(root)
    reference = durations.read_reference(root)
    shipped = durations.estimate(reference, recorded, reference)
    unknown = [name for name in names if name not in recorded and name not in shipped]
    estimated = profile_seconds(root, unknown) if unknown and _has_schema(root) else {}
    seconds: dict[str, float] = {}
    estimates: dict[str, Estimate] = {}
    for name in names:
        if name in cached:
            seconds[name] = 0.0
            estimates[name] = "run-cache"
        elif name in recorded:
            seconds[name] = recorded[name]
            estimates[name] = "recorded"
        elif name in shipped:
            seconds[name] = shipped[name]
            estimates[name] = "reference"
        elif name in estimated:
            seconds[name] = estimated[name]
            estimates[name] = "profile"
        else:
            seconds[name] = 60 * graph.stages[name].minutes
            estimates[name] = "meta"
    return seconds, estimates


def _warnings(root: Path, steps: Sequence[Step], slots: int, written: int, free: int) -> list[str]:
    """Obstacles; `slots`: those that one stage can have."""
    warnings = []
    if written > free:
        warnings.append(
            f"the disk is too small: {format_bytes(written)} would be written and"
            f" {format_bytes(free)} are free. `dvc gc --workspace` deletes old results"
        )
    for step in steps:
        if step.gpus > slots:
            warnings.append(
                f"{step.name} needs {step.gpus} slots and there are {slots}: it will fail. Lower"
                " gpus in meta of dvc.yaml"
            )
    changed = uncommitted_files(root, CODE) if steps else None
    if changed:
        files = ", ".join(changed[:5])
        if len(changed) > 5:
            files += f" and {len(changed) - 5} more"
        warnings.append(
            f"not committed: {files}. Results will be marked as made from a changed commit"
            " (git_dirty)"
        )
    return warnings


def _notes(steps: Sequence[Step]) -> list[str]:
    def count(estimate: Estimate) -> int:
        return sum(step.estimate == estimate for step in steps)

    notes = []
    if meta := count("meta"):
        notes.append(
            f"{meta} of {len(steps)} durations are unknown, as no run is recorded here: the plan"
            f" takes those of dvc.yaml, {FULL_SCALE}"
        )
    if estimated := count("profile"):
        notes.append(
            f"{estimated} of {len(steps)} durations are estimates of the profile that is set, on a"
            " GPU; `med-r1 profile` shows what they rest on"
        )
    if shipped := count("reference"):
        notes.append(
            f"{shipped} of {len(steps)} durations are those of another machine"
            f" ({durations.REFERENCE}), scaled by the stages recorded here"
        )
    if (cached := count("run-cache")) and cached < len(steps):
        notes.append(
            f"{cached} stages are in the run cache and cost nothing; stages after them may be too:"
            " times are upper bounds"
        )
    if unknown := sum(step.bytes is None for step in steps):
        notes.append(
            f"{unknown} of {len(steps)} stages have never run here: the size of their outputs is"
            " not in the sum"
        )
    return notes


def _left_out(root: Path, params: Params, stale: Collection[str]) -> list[str]:
    """The checkpoints without enough data, if stage splits is up to date; else none is known."""
    path = root / layout.LEFT_OUT
    if "splits" in stale or not path.is_file():
        return []
    left_out = read_json(path, "run `dvc repro splits`")[params.splits.kind]
    return [
        name
        for name, each in params.checkpoints.items()
        if each.split in left_out.get(each.axis, {})
    ]


def _describe_left_out(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{', '.join(names)}: left out, as their splits have less data than matrix in params.yaml"
        " asks for: their stages do nothing"
    ]


def run(
    root: Path,
    only: Sequence[str] | None,
    slots: int | None,
    slots_per_gpu: int,
    *,
    as_json: bool,
) -> None:
    """Print the plan of a workspace, as a table or as JSON. InputError if none can be made."""
    plan = make_plan(root, only, slots, slots_per_gpu=slots_per_gpu)
    if as_json:
        print(json.dumps(asdict(plan), ensure_ascii=False, indent=1))
    else:
        print_plan(plan)

"""gpu.md: the results of gpu.json as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

WAYS: Final = {"shared": "shared-prefix", "trl": "trl", "g_copies": "G copies (Med-R1)"}
_GIB: Final = 2**30


def page(result: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    lines = [
        *_head(result),
        *_steps(result["steps"]),
        *_evaluation(result),
        *_matrix(result),
        *_learning(result["learning"]),
    ]
    return "\n".join(lines) + "\n"


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    device = result["device"]
    memory = f", {device['memory_bytes'] / _GIB:.0f} GiB" if "memory_bytes" in device else ""
    yield f"# What the matrix costs on {device['name']}{memory}"
    size = "" if device["name"] == "cpu" else ", full size"
    yield (
        f"torch {device['torch']}, transformers {device['transformers']}, TRL {device['trl']};"
        f" random weights{size}. Made by"
    )
    yield "`python -m benchmarks.gpu`, which also wrote gpu.json."
    if device["name"] == "cpu":
        yield ""
        yield (
            "**No GPU was at hand: these are numbers of a small model on a CPU, and say only that"
            " the script runs.**"
        )
    for name in result["failed"]:
        yield ""
        yield f"**{name} failed and is missing below.**"


def _steps(steps: Mapping[str, Any]) -> Iterator[str]:
    if not steps:
        return
    yield from ("", "## Training", "")
    header = [
        "model and style",
        "G",
        "tokens",
        "engine",
        "ms a prompt",
        "completion tokens/s",
        "MFU",
        "peak memory, GiB",
        "against trl",
    ]
    rates = []
    differences = []
    for name, measured in steps.items():
        for row in measured["rows"]:
            rates += [_rates(name, row, way, engine) for way, engine in WAYS.items()]
            differences.append([name, f"{row['max_logp_diff']:.2g}", f"{row['grad_rel_diff']:.2g}"])
    yield from _table(header, rates)
    yield ""
    yield "Shared prefix against G copies, same completions (bfloat16 rounds to 4e-3 of a number):"
    yield ""
    yield from _table(
        [
            "model and style",
            "largest difference of log-probabilities",
            "relative difference of gradients",
        ],
        differences,
    )


def _rates(name: str, row: Mapping[str, Any], way: str, engine: str) -> list[str]:
    ms = row["ms_per_prompt"]
    return [
        name,
        str(row["group_size"]),
        str(row["completion_tokens"]),
        engine,
        f"{ms[way]:.1f}",
        f"{row['completion_tokens_per_second'][way]:,.0f}",
        f"{row['mfu'][way]:.0%}",
        f"{row['peak_memory_bytes'][way]['total'] / _GIB:.1f}",
        f"{ms['trl'] / ms[way]:.2f}",
    ]


def _evaluation(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["evaluation"]:
        return
    yield from ("", "## Evaluation", "")
    rows = [
        [
            name,
            f"{measured['questions_per_second']:,.1f}",
            f"{measured['published_questions_per_second']:,.1f}",
            f"{measured['speedup']:.2f}",
        ]
        for name, measured in result["evaluation"].items()
    ]
    yield from _table(
        ["model and style", "questions/s", "by the published script's loop", "speedup"], rows
    )


def _matrix(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["matrix_hours"]:
        return
    yield from ("", "## The 13 checkpoints of OmniMedVQA, in GPU-hours by these rates", "")
    columns = [*WAYS, "evaluation"]
    rows = []
    for name, hours in result["matrix_hours"].items():
        both = None
        if {"shared", "evaluation"} <= hours.keys():
            both = hours["shared"] + hours["evaluation"]
        rows.append([name, *(_number(hours.get(each)) for each in columns), _number(both)])
    training = [f"train, {engine}" for engine in WAYS.values()]
    header = ["model and style", *training, "evaluate", "shared-prefix and evaluate"]
    yield from _table(header, rows)


def _learning(run: Mapping[str, Any] | None) -> Iterator[str]:
    if run is None:
        return
    summary = run["summary"]
    yield from ("", "## A true learning run: the embedded sample", "")
    base = f"a base of width {run['width']}" if run["width"] else "the embedded base"
    yield (
        f"{run['checkpoints']} checkpoints from {base}, {run['together']} at a time: trained in"
        f" {run['train_seconds']:.0f} s, tested in {run['evaluate_seconds']:.0f} s, all stages in"
        f" {run['seconds']:.0f} s."
    )
    yield (
        f"In-domain accuracy {summary['in_domain_base']:.1%} to {summary['in_domain']:.1%};"
        f" {summary['beat_base']} of {summary['checkpoints']} better than the base,"
        f" {summary['above_zero']} with an interval above zero."
    )
    if run["changes"]:
        yield f"Changed in params.yaml: {', '.join(run['changes'])}."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

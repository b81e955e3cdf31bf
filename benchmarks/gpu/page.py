"""gpu.md: what was measured, as tables; nothing in it but what the JSON beside it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

WAYS: Final = {"shared": "shared-prefix", "trl": "trl", "g_copies": "G copies (Med-R1)"}
_GIB: Final = 2**30


def page(result: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    return (
        "\n".join(
            [
                *_head(result),
                *_steps(result["steps"]),
                *_evaluation(result),
                *_matrix(result),
                *_learning(result["learning"]),
            ]
        )
        + "\n"
    )


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
    rows = []
    for name, measured in steps.items():
        for row in measured["rows"]:
            for way, called in WAYS.items():
                rows.append(
                    [
                        name,
                        str(row["group_size"]),
                        str(row["completion_tokens"]),
                        called,
                        f"{row['ms_per_prompt'][way]:.1f}",
                        f"{row['completion_tokens_per_second'][way]:,.0f}",
                        f"{row['mfu'][way]:.0%}",
                        f"{row['peak_memory_bytes'][way]['total'] / _GIB:.1f}",
                        f"{row['ms_per_prompt']['trl'] / row['ms_per_prompt'][way]:.2f}",
                    ]
                )
    yield from _table(header, rows)
    yield ""
    rows = []
    for name, measured in steps.items():
        for row in measured["rows"]:
            rows.append([name, f"{row['max_logp_diff']:.2g}", f"{row['grad_rel_diff']:.2g}"])
    yield "Shared prefix against G copies, same completions (bfloat16 rounds to 4e-3 of a number):"
    yield ""
    yield from _table(
        [
            "model and style",
            "largest difference of log-probabilities",
            "relative difference of gradients",
        ],
        rows,
    )


def _evaluation(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["evaluation"]:
        return
    yield from ("", "## Evaluation", "")
    rows = [
        [
            name,
            f"{made['questions_per_second']:,.1f}",
            f"{made['published_questions_per_second']:,.1f}",
            f"{made['speedup']:.2f}",
        ]
        for name, made in result["evaluation"].items()
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
        both = (
            hours["shared"] + hours["evaluation"]
            if {"shared", "evaluation"} <= set(hours)
            else None
        )
        rows.append([name, *(_number(hours.get(each)) for each in columns), _number(both)])
    yield from _table(
        [
            "model and style",
            *(f"train, {called}" for called in WAYS.values()),
            "evaluate",
            "shared-prefix and evaluate",
        ],
        rows,
    )


def _learning(made: Mapping[str, Any] | None) -> Iterator[str]:
    if made is None:
        return
    summary = made["summary"]
    yield from ("", "## A true learning run: the embedded sample", "")
    size = f"a base of width {made['width']}" if made["width"] else "the embedded base"
    yield (
        f"{made['checkpoints']} checkpoints from {size}, {made['together']} at a time: trained in"
        f" {made['train_seconds']:.0f} s, tested in {made['evaluate_seconds']:.0f} s, all stages in"
        f" {made['seconds']:.0f} s."
    )
    yield (
        f"In-domain accuracy {summary['in_domain_base']:.1%} to {summary['in_domain']:.1%};"
        f" {summary['beat_base']} of {summary['checkpoints']} better than the base,"
        f" {summary['above_zero']} with an interval above zero."
    )
    if made["changes"]:
        yield f"Changed in params.yaml: {', '.join(made['changes'])}."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

"""gpu.md: the results of gpu.json as tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final

from benchmarks.gpu.matrix import STYLES
from benchmarks.grpo_step.setting import MODEL_OF

WAYS: Final = {
    "training": "ours, as the profile trains",
    "drafted": "ours, all drafted",
    "shared": "ours, none drafted",
    "trl": "TRL",
    "g_copies": "G copies (Med-R1)",
}
_GIB: Final = 2**30
_UNKNOWN: Final = "-"
_DOES_NOT_FIT: Final = "does not fit"


def page(result: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    lines = [
        *_head(result),
        *_setting(result["steps"]),
        *_steps(result["steps"]),
        *_kernels(result["steps"]),
        *_evaluation(result),
        *_matrix(result),
        *_predictions(result),
        *_learning(result["learning"]),
    ]
    return "\n".join(lines) + "\n"


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    device = result["device"]
    memory = f", {device['memory_bytes'] / _GIB:.0f} GiB" if "memory_bytes" in device else ""
    yield f"# What the matrix costs on {device['name']}{memory}"
    size = "" if device["name"] == "cpu" else ", full size"
    yield from _paragraph(
        f"torch {device['torch']}, transformers {device['transformers']}, TRL {device['trl']};"
        f" random weights{size}. Made by `python -m benchmarks.gpu`, which also wrote gpu.json."
    )
    if device["name"] == "cpu":
        yield ""
        yield from _paragraph(
            "**No GPU was at hand. These are numbers of a small model on a CPU. They say that the"
            " script runs, and nothing of a GPU: neither hours nor ratios carry over.** A CPU"
            " without instructions for bfloat16 may take far longer for a convolution, by which TRL"
            " and Med-R1 embed patches, than for a product, by which ours does: ratios are then"
            " above those of the FLOPs."
        )
    for name in result["failed"]:
        yield ""
        yield f"**{name} failed and is missing below.**"
    for name in result["missing"]:
        yield ""
        minutes = result["more_minutes"].get(name)
        more = f" with --minutes {minutes:g}" if minutes else ""
        yield f"**{name} is not measured yet: re-run the command{more}.**"
    for name in result["outdated"]:
        if name not in (*result["missing"], *result["failed"]):
            yield ""
            yield f"**{name} was measured by other code or settings and is left out.**"


def _setting(steps: Mapping[str, Any]) -> Iterator[str]:
    if not steps:
        return
    yield from ("", "## Setting", "")
    rows = []
    for name, measured in steps.items():
        setting = measured["setting"]
        grpo = setting["grpo"]
        row = measured["rows"][0]
        rows.append(
            [
                name,
                measured["profile"],
                str(measured["prompts_per_step"]),
                str(row["group_size"]),
                str(row["completion_tokens"]),
                _precision(measured["precision"]),
                str(grpo["top_k"] or "all"),
                f"{grpo['beta']:g}",
                str(measured["threads"]),
            ]
        )
    yield from _table(
        [
            "model and style",
            "profile",
            "prompts a step",
            "G",
            "tokens",
            "precision",
            "top k",
            "beta",
            "CPU threads",
        ],
        rows,
    )
    yield ""
    yield from _paragraph(
        "As the profile says, for all implementations. A step is from image files to updated"
        ' weights. All completions have the same number of tokens; with "all drafted" each of them'
        " ends in the trie, as nearly all do in a training without thoughts."
    )
    yield ""
    yield from _paragraph(
        f'"{WAYS["training"]}": consecutive steps of a training with all settings of the profile,'
        " its workers, drafts and the reference ahead; hours and estimates rest on it. All others"
        " are single steps, with nothing done ahead. "
        + " ".join(_training(name, each) for name, each in steps.items())
    )
    yield ""
    towers = sorted({measured["baselines_tower"] for measured in steps.values()})
    yield from _paragraph(
        f"The vision tower of TRL and G copies attends by {' and '.join(towers)}; the language"
        " model by sdpa. Med-R1 ran flash-attention-2 in both."
    )


def _training(name: str, measured: Mapping[str, Any]) -> str:
    """What was timed of a training."""
    training = measured["rows"][0]["training"]
    if training is None:
        return f"{name}: {_DOES_NOT_FIT}."
    drafted = f"{training['drafted']:.0%} drafted" if "drafted" in training else "no drafts"
    return (
        f"{name}: {training['steps']} steps, {drafted}, the reference for"
        f" {training['reference_steps']}, {training['loader_workers']} workers."
    )


def _precision(name: str) -> str:
    return "float32 weights, bfloat16 autocast" if name == "autocast" else name


def _steps(steps: Mapping[str, Any]) -> Iterator[str]:
    if not steps:
        return
    yield from ("", "## Training", "")
    header = [
        "model and style",
        "engine",
        "ms a step",
        "ms a prompt",
        "completion tokens/s",
        "MFU",
        "peak memory, GiB",
        "against G copies",
        "by FLOPs",
    ]
    rates = []
    differences = []
    for name, measured in steps.items():
        for row in measured["rows"]:
            ways = [way for way in WAYS if way in row["ms_per_prompt"]]
            rates += [_rates(name, measured, row, way) for way in ways]
            rates += [_missing(name, way) for way in row["does_not_fit"]]
            keys = ("max_logp_diff", "grad_rel_diff", "grad_rounding")
            differences.append([name, *(_difference(row[key]) for key in keys)])
    yield from _table(header, rates)
    yield ""
    yield from _paragraph(
        "Shared prefix against G copies, on the same completions. Both round to bfloat16 (4e-3 of a"
        " number), in another order; the last column is what rounding alone changes of the"
        " gradients of G copies."
    )
    yield ""
    yield from _table(
        [
            "model and style",
            "largest difference of log-probabilities",
            "relative difference of gradients",
            "of G copies in bfloat16 and in float32",
        ],
        differences,
    )


def _missing(name: str, way: str) -> list[str]:
    """The row of what needs more memory than the GPU has."""
    return [name, WAYS[way], _DOES_NOT_FIT, *[_UNKNOWN] * 6]


def _difference(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.2g}"


def _rates(name: str, measured: Mapping[str, Any], row: Mapping[str, Any], way: str) -> list[str]:
    ms = row["ms_per_prompt"]
    flops = row["flops_per_step"]
    ratios = [_UNKNOWN, _UNKNOWN]
    if "g_copies" in ms:
        ratios = [f"{each['g_copies'] / each[way]:.2f}" for each in (ms, flops)]
    return [
        name,
        WAYS[way],
        f"{ms[way] * measured['prompts_per_step']:.1f}",
        f"{ms[way]:.1f}",
        f"{row['completion_tokens_per_second'][way]:,.0f}",
        f"{row['mfu'][way]:.0%}",
        f"{row['peak_memory_bytes'][way]['total'] / _GIB:.1f}",
        *ratios,
    ]


def _kernels(steps: Mapping[str, Any]) -> Iterator[str]:
    """Who a step waits for: the GPU's kernels against its duration without the profiler."""
    if not steps:
        return
    yield from ("", "## Host and GPU", "")
    rows = []
    for name, measured in steps.items():
        row = measured["rows"][0]
        for way in (each for each in WAYS if each in row["kernels"]):
            seconds = row["seconds"][way]["step"]
            rows.append([name, WAYS[way], *kernel_columns(row["kernels"][way], seconds)])
    if all(row[2] == _UNKNOWN for row in rows):
        yield "Unknown: without a GPU there are no kernels to count."
        return
    yield from _table(
        [
            "model and style",
            "engine",
            "kernels a step",
            "copies",
            "GPU busy, ms",
            "GPU's share",
            "waiting for the host",
        ],
        rows,
    )
    yield ""
    yield from _paragraph(
        "Kernels by torch.profiler in steps of their own; shares of the step without profiler. With"
        " thoughts only ours is traced."
    )


def kernel_columns(kernels: Mapping[str, float] | None, seconds: float) -> list[str]:
    """Kernels, copies, busy ms, the GPU's and the host's share of a step of `seconds`."""
    if kernels is None:
        return [_UNKNOWN] * 5
    share = min(kernels["gpu_seconds"] / seconds, 1.0)
    return [
        f"{kernels['kernels']:,.0f}",
        f"{kernels['copies']:,.0f}",
        f"{1000 * kernels['gpu_seconds']:.1f}",
        f"{share:.0%}",
        f"{1 - share:.0%}",
    ]


def _evaluation(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["evaluation"]:
        return
    yield from ("", "## Evaluation", "")
    rows = [
        [
            name,
            measured["setting"]["dtype"],
            f"{measured['questions_per_second']:,.1f}",
            f"{measured['published_questions_per_second']:,.1f}",
            f"{measured['speedup']:.2f}",
        ]
        for name, measured in result["evaluation"].items()
    ]
    yield from _table(
        [
            "model and style",
            "precision",
            "questions/s",
            "by the published script's loop",
            "speedup",
        ],
        rows,
    )
    yield ""
    towers = {measured["rows"][0]["baselines_tower"] for measured in result["evaluation"].values()}
    yield from _paragraph(
        f"The vision tower of the published loop attends by {' and '.join(sorted(towers))}; Med-R1"
        " ran flash-attention-2."
    )


def _matrix(result: Mapping[str, Any]) -> Iterator[str]:
    if not result["matrix_hours"] or result["device"]["name"] == "cpu":
        return
    yield from ("", "## The 13 checkpoints of OmniMedVQA, in GPU-hours by these rates", "")
    columns = [*WAYS, "evaluation"]
    rows = []
    for name, hours in result["matrix_hours"].items():
        ours = hours.get("training")
        both = None
        if ours is not None and "evaluation" in hours:
            both = ours + hours["evaluation"]
        rows.append([name, *(_number(hours.get(each)) for each in columns), _number(both)])
    training = [f"train, {engine}" for engine in WAYS.values()]
    header = ["model and style", *training, "evaluate", "train and evaluate"]
    yield from _table(header, rows)
    yield ""
    yield from _paragraph(
        "Steps and answers alone: completions that run to the limit, saved states and starts of"
        " processes come in addition (`med-r1 profile full` estimates them)."
    )


def _predictions(result: Mapping[str, Any]) -> Iterator[str]:
    """Estimates beside what was measured, where this is the GPU and the model that they are for."""
    yield from ("", "## Estimated and measured", "")
    rows = []
    for (profile, model), style in product(MODEL_OF.items(), STYLES):
        if predicted := result["predicted"].get(f"{profile}-{style}"):
            rows += _compared(result, profile, f"{model}-{style}", predicted)
    if result["device"]["name"] == "cpu":
        yield from _paragraph(
            "Estimates of `med-r1 profile`. Nothing of it was measured: no GPU was there, and the"
            " model was a small one."
        )
    else:
        yield "Estimates of `med-r1 profile`, without the rates measured here."
    yield ""
    yield from _table(["model and style", "on a", "quantity", "estimated", "measured"], rows)
    yield ""
    yield from _paragraph(
        "Memory is measured in a step whose completions all run to `grpo.max_completion_length`,"
        " none of them foreseen: the peak of torch's allocator, and what the GPU holds besides"
        " (CUDA, its libraries; other processes, if there are any)."
    )


def _compared(
    result: Mapping[str, Any], profile: str, name: str, predicted: Mapping[str, Any]
) -> list[list[str]]:
    on_gpu = result["device"]["name"] != "cpu"
    steps = result["steps"].get(name) if on_gpu else None
    evaluation = result["evaluation"].get(name) if on_gpu else None
    measured: dict[str, float | None] = dict.fromkeys(("step", "pass", "question", "memory"))
    if steps:
        row = steps["rows"][0]
        if training := row["seconds"].get("training"):
            measured["step"] = 1000 * training["step"]
        if peak := row["memory_at_limit"]:
            measured["memory"] = (peak["total"] + peak["outside"]) / _GIB
        seconds = result["pass_seconds"].get(row["model"], {}).get(profile)
        measured["pass"] = None if seconds is None else 1000 * seconds
    if evaluation:
        measured["question"] = 1000 / evaluation["questions_per_second"]
    quantities = (
        ("step", "ms a step of a training", predicted["step_ms"]),
        ("pass", "ms a pass that samples a token", predicted["pass_ms"]),
        ("question", "ms a question", predicted["ms_per_question"]),
        ("memory", "GiB of a training, completions at the limit", predicted["memory_bytes"] / _GIB),
    )
    return [
        [name, predicted["gpu"], what, f"{estimate:.1f}", _number(measured[key]) or _UNKNOWN]
        for key, what, estimate in quantities
    ]


def _learning(run: Mapping[str, Any] | None) -> Iterator[str]:
    if run is None:
        return
    summary = run["summary"]
    yield from ("", "## A true learning run: the embedded sample", "")
    base = f"a base of width {run['width']}" if run["width"] else "the embedded base"
    yield from _paragraph(
        f"{run['checkpoints']} checkpoints from {base}, {run['together']} at a time: trained in"
        f" {run['train_seconds']:.0f} s, tested in {run['evaluate_seconds']:.0f} s, all stages in"
        f" {run['seconds']:.0f} s."
    )
    yield from _paragraph(
        f"In-domain accuracy {summary['in_domain_base']:.1%} to {summary['in_domain']:.1%};"
        f" {summary['beat_base']} of {summary['checkpoints']} better than the base,"
        f" {summary['above_zero']} with an interval above zero."
    )
    if run["changes"]:
        yield f"Changed in params.yaml: {', '.join(run['changes'])}."


def _paragraph(text: str) -> Iterator[str]:
    """Lines of at most 120 columns."""
    yield from textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (header, ["---"] * len(header), *rows):
        yield f"| {' | '.join(row)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

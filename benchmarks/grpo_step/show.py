"""Results of the step benchmark as terminal tables and as a chart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.grpo_step.clock import PARTS
from benchmarks.grpo_step.flops import Way

NAMES: Final[dict[Way, str]] = {
    "g_copies": "G copies (Med-R1)",
    "trl": "TRL",
    "shared": "ours",
    "drafted": "ours, drafted",
    "training": "ours, in a training",
}
DOES_NOT_FIT: Final = "does not fit"
"""In place of a number that would need more memory than the GPU has."""
COMPARED: Final[tuple[Way, ...]] = ("g_copies", "trl", "shared")
"""Those of the chart: they sample all tokens."""


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    console = Console(width=max(Console().width, 200))  # narrower, rich truncates column names
    console.print(
        f"{result['rows'][0]['model']}: {result['parameters'] / 1e6:,.1f}M parameters,"
        f" {_precision(result)}, on {result['device']} ({result['threads']} threads);"
        f" {result['prompts_per_step']} prompts per step,"
        f" medians of {result['repeats']}; peak {result['peak_flops_per_second'] / 1e12:.3g}"
        f" TFLOP/s: {result['peak_source']}"
    )
    console.print(_steps(result["rows"]))
    console.print(_ratios(result["rows"]))
    for row in result["rows"]:
        for text in above_bounds(row):
            console.print(text)


def _precision(result: dict[str, Any]) -> str:
    """Precision, and the profile that it is of."""
    if result["precision"] == "autocast":
        text = "float32 weights in bfloat16 autocast"
    else:
        text = str(result["precision"])
    return f"{text} (profile {result['profile']})" if result["profile"] else text


def above_bounds(row: dict[str, Any]) -> list[str]:
    """Why speedups of a row exceed the ratio of FLOPs: how much of the peak either side reaches."""
    texts = []
    for way, name in NAMES.items():
        speedup, bound = (row.get(f"{ratio}_vs_{way}") for ratio in ("speedup", "bound"))
        if speedup is None or speedup <= bound:
            continue
        cell = f"G={row['group_size']} C={row['completion_tokens']}"
        if row["images"] > 1:
            cell += f", {row['images']} images"
        texts.append(
            f"{cell}: {speedup:.2f}x is above the ratio of FLOPs, {bound:.2f}, as {name} reaches"
            f" {row['mfu'][way]:.0%} of the peak here and ours {row['mfu']['shared']:.0%}: memory"
            " and small products, not the prompt, make up the difference"
        )
    return texts


def _steps(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Seconds per step, by part")
    for name in ("images", "tokens", "G", "C", "way"):
        table.add_column(name)
    for name in ("step", *PARTS, "ms/prompt", "tokens/s", "MFU", "peak memory"):
        table.add_column(name, justify="right")
    for row in rows:
        ways = [way for way in NAMES if way in row["seconds"]]
        for way in ways:
            seconds = row["seconds"][way]
            last = way == ways[-1]
            table.add_row(
                str(row["images"]),
                str(row["prompt_tokens"]),
                str(row["group_size"]),
                str(row["completion_tokens"]),
                NAMES[way],
                *(_part(seconds.get(part)) for part in ("step", *PARTS)),
                f"{row['ms_per_prompt'][way]:.0f}",
                f"{row['completion_tokens_per_second'][way]:.0f}",
                f"{row['mfu'][way]:.0%}",
                f"{row['peak_memory_bytes'][way]['above_start'] / 2**30:.2f} GiB",
                end_section=last,
                style="bold" if last else None,
            )
    return table


def _ratios(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Speedup of ours; in brackets the ratio of FLOPs")
    for name in (
        "images",
        "G",
        "C",
        "over G copies",
        "over TRL",
        "TRL's prompts a pass",
        "largest difference of log-probabilities",
        "of gradients",
        "largest part of our step",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        largest = row["largest_in_ours"]
        table.add_row(
            str(row["images"]),
            str(row["group_size"]),
            str(row["completion_tokens"]),
            _ratio(row, "g_copies"),
            _ratio(row, "trl"),
            str(row["trl_prompts_per_pass"] or DOES_NOT_FIT),
            *(_difference(row[key]) for key in ("max_logp_diff", "grad_rel_diff")),
            f"{largest['part']}, {largest['share']:.0%}" if largest else DOES_NOT_FIT,
        )
    return table


def _ratio(row: dict[str, Any], way: Way) -> str:
    """How many times faster ours is, and in brackets the ratio of FLOPs."""
    speedup, bound = row[f"speedup_vs_{way}"], row[f"bound_vs_{way}"]
    return DOES_NOT_FIT if speedup is None else f"{speedup:.2f}x ({bound:.1f})"


def _difference(value: float | None) -> str:
    return DOES_NOT_FIT if value is None else f"{value:.1e}"


def _part(seconds: float | None) -> str:
    """Seconds of a part; of consecutive steps only the whole is timed."""
    return "" if seconds is None else f"{seconds:.3f}"


def save_chart(path: Path, result: dict[str, Any]) -> None:
    """Plot step time by group size, one panel per completion length, to a PNG with provenance."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

    from stages.reporting.palette import LIGHT

    rows = result["rows"]
    lengths = sorted({row["completion_tokens"] for row in rows})
    colours = {
        "g_copies": to_hex(LIGHT(0.25)),
        "trl": to_hex(LIGHT(0.5)),
        "shared": to_hex(LIGHT(1.0)),
    }
    style: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#8a867c",
        "xtick.color": "#55524a",
        "ytick.color": "#55524a",
        "axes.labelcolor": "#55524a",
        "axes.titlesize": 9.5,
        "axes.titlelocation": "left",
        "figure.dpi": 150,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(3.6 * len(lengths) + 0.6, 3.2), layout="constrained")
        panels = figure.subplots(1, len(lengths), squeeze=False)[0]
        for panel, length in zip(panels, lengths, strict=True):
            here = sorted(
                (row for row in rows if row["completion_tokens"] == length),
                key=lambda row: (row["images"], row["group_size"]),
            )
            at = np.arange(len(here))
            for number, way in enumerate(COMPARED):
                heights = [_step_seconds(row, way) for row in here]
                bars = panel.bar(
                    at + (number - 1) * 0.27, heights, 0.25, color=colours[way], label=NAMES[way]
                )
                texts = [_bar_text(row, way) for row in here]
                panel.bar_label(bars, texts, fontsize=7, padding=2, color="#1c1b19")
            panel.set(
                title=f"{length} tokens a completion", xlabel="completions a prompt (G)", xticks=at
            )
            panel.set_xticklabels(map(_label, here))
            panel.margins(y=0.16)
            panel.grid(axis="y", color="#e6e2d8", linewidth=0.7)
            panel.set_axisbelow(True)
        panels[0].set_ylabel(f"seconds a step of {result['prompts_per_step']} prompts")
        panels[0].legend(frameon=False, loc="upper left", fontsize=8)
        FigureCanvasAgg(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            path,
            format="png",
            metadata={"Software": None, "provenance": json.dumps(result["provenance"])},
        )


def _label(row: dict[str, Any]) -> str:
    """The group size, and the images of a question if there are several."""
    images = f"\n{row['images']} images" if row["images"] > 1 else ""
    return f"{row['group_size']}{images}"


def _step_seconds(row: dict[str, Any], way: Way) -> float:
    """Seconds of a step, the height of its bar; 0 if it does not fit."""
    return float(row["seconds"].get(way, {}).get("step", 0.0))


def _bar_text(row: dict[str, Any], way: Way) -> str:
    """Above a bar: its seconds, and how many times those of ours they are."""
    if way not in row["seconds"]:
        return DOES_NOT_FIT
    ratio = row.get(f"speedup_vs_{way}")
    return _seconds(_step_seconds(row, way)) + (f"\n{ratio:.1f}x ours" if ratio else "")


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"

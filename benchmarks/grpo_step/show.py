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
}
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
        if way not in ("g_copies", "trl") or row[f"speedup_vs_{way}"] <= row[f"bound_vs_{way}"]:
            continue
        cell = f"G={row['group_size']} C={row['completion_tokens']}"
        if row["images"] > 1:
            cell += f", {row['images']} images"
        texts.append(
            f"{cell}: {row[f'speedup_vs_{way}']:.2f}x is above the ratio of FLOPs,"
            f" {row[f'bound_vs_{way}']:.2f}, as {name} reaches {row['mfu'][way]:.0%} of the peak"
            f" here and ours {row['mfu']['shared']:.0%}: memory and small products, not the prompt,"
            " make up the difference"
        )
    return texts


def _steps(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Seconds per step, by part")
    for name in ("images", "tokens", "G", "C", "way"):
        table.add_column(name)
    for name in ("step", *PARTS, "ms/prompt", "tokens/s", "MFU", "peak memory", "matrix"):
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
                *(f"{seconds[part]:.3f}" for part in ("step", *PARTS)),
                f"{row['ms_per_prompt'][way]:.0f}",
                f"{row['completion_tokens_per_second'][way]:.0f}",
                f"{row['mfu'][way]:.0%}",
                f"{row['peak_memory_bytes'][way]['above_start'] / 2**30:.2f} GiB",
                f"{row['matrix_hours'][way]:.1f} h",
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
            f"{row['speedup_vs_g_copies']:.2f}x ({row['bound_vs_g_copies']:.1f})",
            f"{row['speedup_vs_trl']:.2f}x ({row['bound_vs_trl']:.1f})",
            str(row["trl_prompts_per_pass"]),
            f"{row['max_logp_diff']:.1e}",
            f"{row['grad_rel_diff']:.1e}",
            f"{largest['part']}, {largest['share']:.0%}",
        )
    return table


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
                heights = [row["seconds"][way]["step"] for row in here]
                bars = panel.bar(
                    at + (number - 1) * 0.27, heights, 0.25, color=colours[way], label=NAMES[way]
                )
                ratios = [1.0 if way == "shared" else row[f"speedup_vs_{way}"] for row in here]
                texts = [
                    _seconds(height) + ("" if way == "shared" else f"\n{ratio:.1f}x ours")
                    for height, ratio in zip(heights, ratios, strict=True)
                ]
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


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.0f} ms"

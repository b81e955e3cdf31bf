"""The report as Markdown: the page's numbers for a terminal, a pull request or a diff; and what model cards share with it.

What a model or a data set wrote is set in fences or escaped, so that it stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from stages.reporting.curves import ends
from stages.reporting.evidence import Case, Evidence, count_refusals, group_origins
from stages.reporting.labels import label, p_value, percent, signed
from stages.reporting.page import REFUSALS, SPARKS, clip
from stages.reporting.sheets import flat
from stages.reporting.terminal import sentences
from stages.scoring.published import HEADLINES, NO_THINK_MINUS_THINK, THIRD_PARTY
from stages.scoring.tables import CrossTable

MISSING: Final = "missing"
BY: Final = {"modality": "modality", "task": "question type"}


def render_markdown(evidence: Evidence) -> str:
    """The whole report, one string that ends with a newline."""
    metrics, checkpoints = evidence.metrics, evidence.metrics["checkpoints"]
    parts = [
        f"# {metrics['summary']['checkpoints']} checkpoints from one base",
        *sentences(metrics),
        *(["Synthetic data: drawn phantoms, not patients. The numbers say nothing about medicine."] if evidence.synthetic else []),
        "## In-domain",
        "In %, differences in points, 95% intervals in brackets; p: exact McNemar, adjusted for all checkpoints (Holm).",
        table(["checkpoint", "n", "accuracy", "blind floor", "base", "gain", "p"], [in_domain_row(*each) for each in checkpoints.items()]),
        "### Is it the picture?",
        table(
            ["checkpoint", "above the floor", "visual gain", "over a black picture", "base's visual gain", "balanced", "n", "base there"],
            [picture_row(*each) for each in checkpoints.items()],
        ),
        "### Rules without a picture, and the base scored as published",
        table(
            ["checkpoint", "chance", "majority letter", "floor", "normalised", "pooled", "base, fair", "zero-shot", "tag", "tag or raw"],
            [rules_row(*each) for each in checkpoints.items()],
        ),
        *_methods(checkpoints),
        "## Across domains",
        *_crosses(evidence),
        "## By data set",
        table(["checkpoint", "data set", "n", "accuracy", "base", "blind floor", "visual gain"], _dataset_rows(checkpoints)),
        "## Reward hacking",
        *signs(evidence, checkpoints),
        "## Cases",
        *(part for case in evidence.cases for part in _case(case)),
        "## What a reader may not conclude",
        bullets(limits(evidence, metrics["summary"]["blind_floor"])),
        "## Training",
        *_training(evidence),
        "## Data",
        *_data(evidence),
        "## Printed by others: not ours, not to be compared",
        *_printed(),
        "## Provenance",
        facts(metrics["provenance"]),
        *(part for names, origin in group_origins(evidence.origins) for part in (f"### Predictions of {', '.join(names)}", facts(origin))),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def limits(evidence: Evidence, blind_floor: float | None) -> list[str]:
    """What may not be concluded, where a rule without the picture has an accuracy of `blind_floor`."""
    floor = "" if blind_floor is None else f"a rule without the picture is right in {percent(blind_floor)}%"
    return [
        "Nothing clinical: research on training methods, not a medical device." + (" Phantoms are drawings." if evidence.synthetic else ""),
        f"A right answer is no proof of looking: {floor or 'how far wording alone leads was not counted here'}.",
        "A visual gain shows that pictures are used, not that they are read as a physician would.",
        "One seed was trained: intervals cover the choice of questions and pictures, not the luck of training.",
        "Only p values are adjusted for the number of checkpoints, and they take questions for independent.",
        "The balanced subset is a part of the test without the shortcut, not an estimate for the whole.",
        "Numbers printed by others are of other questions and cannot be subtracted from ours.",
    ]


def in_domain_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Checkpoint, n, accuracy, floor, base, gain, p."""
    own = entry["in_domain"]
    floor = own["floor"]
    return [
        name,
        str(own["n"]),
        f"{percent(own['accuracy'])} [{percent(own['accuracy_low'])} to {percent(own['accuracy_high'])}]",
        f"{percent(floor['accuracy'])} [{percent(floor['low'])} to {percent(floor['high'])}]" if floor else MISSING,
        percent(own["base"]),
        difference(own["gain"], own["low"], own["high"]),
        p_value(own["p_holm"]),
    ]


def picture_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Checkpoint, above the floor, visual gains, and the balanced subset."""
    own = entry["in_domain"]
    floor, balanced = own["floor"], own["balanced"]
    visual = [own["visual"]["shuffled"], own["visual"]["blank"], own["base_visual"]["shuffled"]]
    return [
        name,
        difference(floor["above"], floor["above_low"], floor["above_high"]) if floor else MISSING,
        *(difference(found["gain"], found["low"], found["high"]) if found else MISSING for found in visual),
        *([percent(balanced["accuracy"]), str(balanced["n"]), percent(balanced["base"])] if balanced else [MISSING] * 3),
    ]


def rules_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Checkpoint, chance, majority letter, floors, and the base by each protocol."""
    own = entry["in_domain"]
    floor, majority, scored = own["floor"], own["majority"], own["base_scored"]
    return [
        name,
        percent(own["chance"]),
        f"{percent(majority['accuracy'])} ({majority['letter']})" if majority else MISSING,
        *(percent(floor[key]) if floor else MISSING for key in ("accuracy", "normalised", "pooled")),
        *(percent(scored[protocol]) for protocol in ("fair", "zero-shot", "tag", "tag-or-raw")),
    ]


def difference(value: float, low: float, high: float) -> str:
    """Points with their interval."""
    return f"{signed(value)} [{signed(low)} to {signed(high)}]"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; cells are escaped."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def facts(tree: Mapping[str, Any]) -> str:
    """Nested settings, a line each."""
    return fence("\n".join(f"{key}: {value}" for key, value in flat(tree).items()))


def fence(text: str) -> str:
    """Text that is not interpreted, whatever is in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"


def signs(evidence: Evidence, checkpoints: Mapping[str, Any]) -> list[str]:
    """The signs of reward hacking in these checkpoints, and what was written where one is raised."""
    names = [sign["name"] for sign in next(iter(checkpoints.values()))["hacking"]]
    rows = [
        [
            name,
            *(("raised: " if s["raised"] else "") + ("-" if s["measured"] is None else f"{s['measured']:.3f}") for s in entry["hacking"]),
        ]
        for name, entry in checkpoints.items()
    ]
    examples = [
        part
        for name, entry in checkpoints.items()
        for sign in entry["hacking"]
        if sign["raised"]
        for part in (
            f"{name}, {sign['name']}: {sign['count']} of {sign['n']}; {sign['what']}",
            *(f"{code(question)}\n\n{fence(clip(evidence.outputs[name, question]))}" for question in sign["question_ids"]),
        )
    ]
    return [table(["checkpoint", *names], rows), *examples]


def code(text: str) -> str:
    """A short text on one line that is not interpreted."""
    return "`" + re.sub(r"[`\s]+", " ", text) + "`"


def _cell(value: Any) -> str:
    text = "-" if value is None else str(value)
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", " ".join(text.split())) if re.search(r"[|<>`*\\]", text) else " ".join(text.split())


def _methods(checkpoints: Mapping[str, Any]) -> list[str]:
    rivals = {name: entry["in_domain"]["grpo"] for name, entry in checkpoints.items() if "grpo" in entry["in_domain"]}
    return [
        bullets(
            f"{rival['checkpoint']} with GRPO against {name}: {difference(rival['gain'], rival['low'], rival['high'])} points"
            for name, rival in rivals.items()
        )
    ]


def _crosses(evidence: Evidence) -> list[str]:
    parts = []
    for axis, tables in evidence.tables.items():
        for title, found in {
            f"Accuracy by {BY[axis]}, %": tables.accuracy,
            f"Difference to the base by {BY[axis]}, points": tables.to_base,
            f"Visual gain by {BY[axis]}, points": tables.visual_gain,
            f"Slices: checkpoints by {BY[axis]}, tested by {next(BY[each] for each in BY if each != axis)}, %": tables.slices,
        }.items():
            parts += [f"### {title}", _cross(found) if found.there else MISSING.capitalize() + "."]
    return parts


def _cross(found: CrossTable) -> str:
    write = percent if found.measure == "accuracy" else signed
    heads = ["trained on", *(f"{label(cell)} (n = {n})" for cell, n in found.questions.items()), "macro"]
    return table(heads, [[name, *(write(value) for value in row.values())] for name, row in found.values.items()])


def _dataset_rows(checkpoints: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, dataset, str(found["n"]), *(percent(found[key]) for key in ("accuracy", "base", "floor")), signed(found["visual_gain"])]
        for name, entry in checkpoints.items()
        for dataset, found in entry["in_domain"]["by_dataset"].items()
    ]


def _case(case: Case) -> list[str]:
    told = f"gold {case.gold}, read as {case.answer or 'nothing'}"
    return [
        f"### {label(case.checkpoint)}: {case.verdict}",
        f"{code(case.question_id)}, picture {code(case.image)}, {told}",
        fence(case.problem) if case.problem is not None else "Question text not at hand.",
        fence(clip(case.output)),
        *(
            [f"With {'a black' if case.without[0] == 'blank' else 'another'} picture:", fence(clip(case.without[1]))]
            if case.without
            else []
        ),
    ]


def _training(evidence: Evidence) -> list[str]:
    if not evidence.logs:
        return ["Missing: training logs were not at hand."]
    columns = {"reward": "{:.2f}", "reward_accuracy": "{:.2f}", "reward_format": "{:.2f}"} | {
        name: form for name, (_, form) in SPARKS.items()
    }
    rows = [
        [
            name,
            *(
                " to ".join(form.format(end) for end in ends(log[column])) if log[column].notna().any() else "not logged"
                for column, form in columns.items()
            ),
        ]
        for name, log in evidence.logs.items()
    ]
    return [
        "Means over the first and the last tenth of the steps.",
        table(["checkpoint", *(name.replace("_", " ") for name in columns)], rows),
    ]


def _data(evidence: Evidence) -> list[str]:
    if not evidence.splits:
        return ["Missing: splits and accounts of refused inputs were not at hand."]
    splits = [[BY[each.axis], each.slug, each.train, each.test, each.shared] for each in evidence.splits]
    accounts = [[each.stage, each.read, each.kept, len(each.rows)] for each in evidence.quarantine]
    return [
        table(["by", "split", "train", "test", "test with an image of train"], splits),
        table(["stage", "read", "kept", "refused"], accounts),
        *_refusals(evidence),
        *_data_tests(evidence),
    ]


def _refusals(evidence: Evidence) -> list[str]:
    """What was refused by source set and reason."""
    found = count_refusals(evidence.quarantine)
    if not found:
        return ["Nothing was refused."]
    rows = [
        [
            each.dataset,
            each.reason,
            each.count,
            percent(each.share, 2),
            "; ".join(f"{row.where}: {row.what}: {row.why}" for row in each.examples),
        ]
        for each in found[:REFUSALS]
    ]
    more = [f"The {REFUSALS} most frequent of {len(found)}."] if len(found) > REFUSALS else []
    return [
        "Refused by source set and reason; shares of what was read of the set.",
        *more,
        table(["source set", "reason", "refused", "%", "as"], rows),
    ]


def _data_tests(evidence: Evidence) -> list[str]:
    """How the tests of the corpus ended, and what its pictures are like."""
    if evidence.data_tests is None:
        return ["Missing: results of the tests of the data were not at hand."]
    tests = evidence.data_tests.tests
    failed = [
        [each.test, f"{each.value:g}", f"{each.limit:g}", each.where, *(each.examples[:1] or [""])]
        for each in tests
        if each.outcome == "failed"
    ]
    off = ", ".join(each.test for each in tests if each.outcome == "not run")
    said = f" Not run: {off}." if off else ""
    light = [
        [
            label(slug),
            each["images"],
            each["median_side"],
            *(f"{each[name]['mean']:.1f} +- {each[name]['std']:.1f}" for name in ("brightness", "contrast")),
        ]
        for slug, each in evidence.data_tests.statistics.items()
    ]
    return [
        "### Tests of the data",
        f"{sum(each.outcome == 'passed' for each in tests)} of {len(tests)} passed.{said}",
        table(["warning", "value", "limit", "where", "as"], failed) if failed else "",
        "Pictures: shorter side in pixels, mean and standard deviation over pictures of brightness and contrast in grey levels.",
        table(["modality", "images", "median side", "brightness", "contrast"], light),
    ]


def _printed() -> list[str]:
    columns = ["of", "what", "value", "unit", "source", "caution"]
    rows = [[each.subject, each.measure, each.value, each.unit, each.source, each.caveat] for each in (*HEADLINES, *THIRD_PARTY)]
    parts = [
        "None of these numbers was measured here: other questions, splits, prompts and ways of reading an answer.",
        table(columns, rows),
    ]
    for axis, found in NO_THINK_MINUS_THINK.items():
        parts += [
            f"Med-R1, {found.measure}, by {BY[axis]}, {found.unit}. {found.source}. {found.caveat}",
            table(
                ["trained on", *map(label, found.cells)], [[label(cell), *row] for cell, row in zip(found.cells, found.values, strict=True)]
            ),
        ]
    return parts

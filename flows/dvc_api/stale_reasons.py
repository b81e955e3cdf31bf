"""Short explanations of why a stage is stale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from flows.dvc_api.client import Reasons, format_reasons
from flows.dvc_api.graph import Graph, overlap


def explain_staleness(graph: Graph, reasons: Reasons, after: Sequence[str], has_run: bool) -> str:
    """Why a stage would run, in one line: its own changes, then the stages it waits for (`after`).

    Changes of what those stages write are left out; a stage that has never run is only said to be
    so.
    """
    upstream_outs = list(chain.from_iterable(graph.stages[each].outs for each in after))
    own: Reasons = {} if has_run else {"never run here": {}}
    for kind, changes in reasons.items() if has_run else ():
        own_changes = {
            path: change
            for path, change in changes.items()
            if kind != "changed deps" or not any(overlap(path, out) for out in upstream_outs)
        }
        is_many_outs = kind == "changed outs" and len(own_changes) > 1
        if is_many_outs and len(set(own_changes.values())) == 1:
            own[f"{len(own_changes)} outputs {next(iter(own_changes.values()))}"] = {}
        elif own_changes or not changes:
            own[kind] = own_changes
    parts = [format_reasons(own)] if own else []
    if after:
        parts.append(f"after {name_groups(after)}")
    return "; ".join(parts)


def name_groups(names: Sequence[str]) -> str:
    """Names in one line, more than 3 of a group as a count: "base, resize@ct, evaluate (14)"."""
    groups = [name.partition("@")[0] for name in names]
    counts = Counter(groups)
    labels = [
        name if counts[group] <= 3 else f"{group} ({counts[group]})"
        for name, group in zip(names, groups, strict=True)
    ]
    return ", ".join(dict.fromkeys(labels))

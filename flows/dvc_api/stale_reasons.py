"""Why a stage would run, as short as it can be said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from flows.dvc_api.client import Reasons, say_reasons
from flows.dvc_api.graph import Graph, overlap


def say_why(graph: Graph, reasons: Reasons, after: Sequence[str], has_run: bool) -> str:
    """In a line, why a stage would run: what changed by itself, then the stages it waits for.

    What is stale about it only because of those is left out; so are, where it has never run, all
    differences to nothing.
    """
    made = list(chain.from_iterable(graph.stages[each].outs for each in after))
    own: Reasons = {}
    if not has_run:
        own["never run here"] = {}
    for kind, changes in reasons.items() if has_run else ():
        left = {
            path: how
            for path, how in changes.items()
            if kind != "changed deps" or not any(overlap(path, out) for out in made)
        }
        if kind == "changed outs" and len(set(left.values())) == 1 and len(left) > 1:
            own[f"{len(left)} outputs {next(iter(left.values()))}"] = {}
        elif left or not changes:
            own[kind] = left
    waits = [f"after {name_groups(after)}"] if after else []
    return "; ".join([say_reasons(own)] * bool(own) + waits)


def name_groups(names: Sequence[str]) -> str:
    """Names, many of a group as their number: "base, resize@ct, evaluate (14)"."""
    groups = Counter(name.partition("@")[0] for name in names)
    few = [
        (
            name
            if groups[name.partition("@")[0]] <= 3
            else f"{name.partition('@')[0]} ({groups[name.partition('@')[0]]})"
        )
        for name in names
    ]
    return ", ".join(dict.fromkeys(few))

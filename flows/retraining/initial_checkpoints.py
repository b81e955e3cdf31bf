"""Initial checkpoints of trainings: `checkpoints.<name>.start` of params.yaml.

params.yaml is edited in place, keeping comments and order.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flows.dvc_api.client import read_status
from flows.registry import champion as champions
from flows.registry.champion import Champion
from flows.retraining.context import Retraining, Start
from stages.core import layout
from stages.core.outputs import atomic_file
from stages.core.params import Params, load_params
from stages.core.yaml_files import dump_edited, load_for_edit, read_text

CHAMPIONS: Final = layout.MODELS / "champion"
"""Champions' weights that trainings start from.

No stage makes them; dvc.lock pins them as dependencies of the trainings that start from them.
"""


def start_affected_trainings(
    run: Retraining, params: Params, champion: Champion | None, start: Start
) -> None:
    """Start exactly the trainings affected by new data from the requested policy."""
    run.bring_up_to_date(["splits"])
    stale = {name.partition("@")[2] for name in read_status(run.root) if name.startswith("train@")}
    names = [name for name in params.checkpoints if name in stale]
    if start == "base":
        starts = dict.fromkeys(names, layout.BASE_MODEL)
    else:
        known = champion.checkpoints if champion else {}
        for name in [each for each in names if each not in known]:
            run.report(
                f"{name} is not a checkpoint of the champion: it starts from the policy in"
                " params.yaml"
            )
        starts = {name: CHAMPIONS / name for name in names if name in known}
        for name in starts:
            champions.checkout(run.root, name, run.root / starts[name])
    set_initial_checkpoints(run.root, starts)
    run.report(f"starting from the {start}: {', '.join(starts) or 'none, as none is stale'}")


def set_initial_checkpoints(root: Path, starts: Mapping[str, Path]) -> list[str]:
    """Set the initial checkpoints of trainings; the names of those whose setting changed.

    InputError, with nothing written, if params.yaml is invalid or cannot be edited without changing
    its layout.
    """
    path = root / layout.PARAMS
    checkpoints = load_params(path).checkpoints
    wanted = {name: start.as_posix() for name, start in starts.items()}
    changed = [name for name, start in wanted.items() if checkpoints[name].start != start]
    if not changed:
        return []
    tree = load_for_edit(read_text(path), path)
    for name in changed:
        tree["checkpoints"][name]["start"] = wanted[name]
    with atomic_file(path) as temporary:
        temporary.write_text(dump_edited(tree), encoding="utf-8")
    return changed

"""The champion: the checkpoints in use, with promotion and rollback.

`champions/history/<n>.json` describes one version and never changes; `champions/champion.json`
points to the current one and is replaced atomically. Weights, predictions and the manifest of the
corpus stay in DVC's cache, and in its default remote if there is one, under the hashes recorded in
the version.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flows.dvc_api.client import format_reasons, read_status
from flows.registry import store
from flows.registry.manifest import Manifest, build_manifest, read_manifest, write_manifest
from flows.registry.store import CachedObject
from flows.source import probe as source
from stages.core import layout
from stages.core.errors import InputError
from stages.core.git import git_value, is_dirty
from stages.core.outputs import read_json, write_json
from stages.core.params import Params, load_params
from stages.core.provenance import CODE
from stages.reporting.sources import read_predictions
from stages.scoring.tables import CELLS, check_predictions, in_domain, macro, scores_by, tested

FOLDER: Final = Path("champions")
POINTER: Final = FOLDER / "champion.json"
HISTORY: Final = FOLDER / "history"
DECIDING: Final = ("download", "resize", "splits", "base", "train", "evaluate")
"""Groups of stages that determine a champion: they must be up to date before a promotion."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


RecordType = TypeVar("RecordType", bound=_Record)


class Entry(_Record):
    """One checkpoint of a champion: its split, weights, predictions, and accuracy when promoted."""

    axis: str
    cell: str
    method: str
    model: CachedObject
    predictions: CachedObject
    questions: int
    accuracy: float
    macro: float | None


class Champion(_Record):
    """One version.

    `predecessor`: the champion before it; `style`: prompt style; `split_kind`: kind of split.
    """

    version: int
    predecessor: int | None
    promoted_at: str
    why: str
    git_commit: str | None
    git_dirty: bool | None
    corpus: source.PinnedCorpus
    manifest: CachedObject
    split_kind: str
    style: str
    checkpoints: dict[str, Entry]


class Pointer(_Record):
    """Which version is the champion, since when, and why."""

    version: int
    since: str
    why: str


def pointer(root: Path) -> Pointer | None:
    """Which version is the champion; None if none was ever promoted."""
    return _read(root, root / POINTER, Pointer) if (root / POINTER).is_file() else None


def current(root: Path) -> Champion | None:
    """The champion; None if none was ever promoted. InputError if its files are corrupt."""
    latest = pointer(root)
    return version(root, latest.version) if latest else None


def require(root: Path, number: int | None = None) -> Champion:
    """The champion, or the version of this number; InputError if there is none."""
    champion = current(root) if number is None else version(root, number)
    if champion is None:
        raise InputError(
            f"{root / POINTER} is missing: there is no champion yet; run `med-r1 champion promote`"
            " to promote the current results"
        )
    return champion


def version(root: Path, number: int) -> Champion:
    """One version; InputError, listing the existing ones, if there is none of this number."""
    path = _path(root, number)
    if not path.is_file():
        raise InputError(
            f"there is no champion {number}; existing:"
            f" {', '.join(map(str, versions(root))) or 'none'}"
        )
    return _read(root, path, Champion)


def versions(root: Path) -> list[int]:
    """The numbers of all versions, oldest first."""
    return sorted(int(path.stem) for path in (root / HISTORY).glob("*.json") if path.stem.isdigit())


def check_no_folds(params: Params) -> None:
    """InputError for a cross-validation, whose checkpoints are none that could serve."""
    if params.splits.folds:
        raise InputError(
            "splits.folds is set: a cross-validation estimates what training on such data gives,"
            " and none of its checkpoints is a champion. Set splits.folds to null, with one"
            " checkpoint for each split"
        )


def promote(root: Path, why: str) -> Champion:
    """Make the current results the champion; InputError if they are not up to date.

    Everything is written, and pushed to the default remote if there is one, before the pointer
    moves.
    """
    params = load_params(root / layout.PARAMS)
    check_no_folds(params)
    check_current(root)
    outputs = store.outputs(root)
    checkpoints = {
        name: _entry(root, params, name, outputs)
        for name in params.checkpoints
        if not (root / layout.left_out(name)).is_file()
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        write_manifest(path, build_manifest(root, params.taxonomy, params.splits.kind))
        manifest = store.add(root, path)
    entries = checkpoints.values()
    store.push(root, [entry.model for entry in entries] + [entry.predictions for entry in entries])
    before = pointer(root)
    champion = Champion(
        version=max(versions(root), default=0) + 1,
        predecessor=before.version if before else None,
        promoted_at=_now(),
        why=why,
        git_commit=git_value(root, "rev-parse", "HEAD"),
        git_dirty=is_dirty(root, (path for path in CODE if path != str(layout.DATA_DVC))),
        corpus=source.read_pin(root),
        manifest=manifest,
        split_kind=params.splits.kind,
        style=params.prompt.style,
        checkpoints=checkpoints,
    )
    write_json(_path(root, champion.version), champion.model_dump(mode="json"))
    _point(root, champion.version, why)
    return champion


def rollback(root: Path, to: int | None = None) -> Champion:
    """Make an earlier version, the predecessor or `to`, the champion; results stay unchanged."""
    now = require(root)
    if to is None and now.predecessor is None:
        raise InputError(
            f"champion {now.version} is the first: there is no earlier one to roll back to"
        )
    target = version(root, to if to is not None else now.predecessor or 0)
    if target.version == now.version:
        raise InputError(f"{target.version} is already the champion")
    _point(root, target.version, f"rolled back from {now.version}")
    return target


def checkout(root: Path, name: str, folder: Path, number: int | None = None) -> Champion:
    """Restore a champion's weights to `folder`, replacing its contents; which champion.

    InputError if they are not available.
    """
    champion = require(root, number)
    if name not in champion.checkpoints:
        raise InputError(
            f"champion {champion.version} has no checkpoint {name!r}; it has:"
            f" {', '.join(champion.checkpoints)}"
        )
    store.fetch(
        root,
        champion.checkpoints[name].model,
        folder,
        f"the weights of {name}, champion {champion.version}",
    )
    return champion


def manifest_of(root: Path, champion: Champion) -> Manifest:
    """The manifest of the champion's corpus."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.json"
        store.fetch(
            root, champion.manifest, path, f"the manifest of champion {champion.version}'s corpus"
        )
        return read_manifest(path)


def check_current(root: Path) -> None:
    """InputError if a stage that determines checkpoints or predictions is stale."""
    stale = {
        name: why
        for name, why in read_status(root).items()
        if name.partition("@")[0] in (*DECIDING, str(layout.DATA_DVC))
    }
    for name, why in stale.items():
        raise InputError(
            f"{name} is not up to date ({format_reasons(why)}), so the results are stale: run"
            " `dvc repro` first"
        )


def _entry(root: Path, params: Params, name: str, outputs: dict[str, CachedObject]) -> Entry:
    checkpoint = params.checkpoints[name]
    paths = {"model": str(layout.model(name)), "predictions": str(layout.predictions(name))}
    for path in paths.values():
        if path not in outputs:
            raise InputError(f"dvc.lock has no {path}: run `dvc repro evaluate@{name}`")
    rows, _ = read_predictions(root / layout.predictions(name), f"evaluate@{name}")
    axes = params.taxonomy.axes
    cells = params.cells_of(checkpoint.split)
    check_predictions(rows, name, checkpoint.axis, paths["predictions"], axes, cells)
    own = in_domain(rows, checkpoint.axis, cells)["correct"]
    axis_rows = tested(rows, checkpoint.axis)
    mean = macro(scores_by(axis_rows, CELLS[checkpoint.axis], axes[checkpoint.axis]))
    return Entry(
        axis=checkpoint.axis,
        cell=checkpoint.split,
        method=checkpoint.method,
        model=outputs[paths["model"]],
        predictions=outputs[paths["predictions"]],
        questions=len(own),
        accuracy=round(float(own.mean()), 6),
        macro=None if mean is None else round(mean, 6),
    )


def _point(root: Path, number: int, why: str) -> None:
    latest = Pointer(version=number, since=_now(), why=why)
    write_json(root / POINTER, latest.model_dump(mode="json"))


def _path(root: Path, number: int) -> Path:
    return root / HISTORY / f"{number:04d}.json"


def _read(root: Path, path: Path, kind: type[RecordType]) -> RecordType:
    remedy = f"run `git checkout -- {path.relative_to(root)}` to restore it"
    try:
        return kind.model_validate(read_json(path, remedy))
    except ValidationError as error:
        raise InputError(
            f"{path} is corrupt ({str(error).splitlines()[-2].strip()}): {remedy}"
        ) from error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

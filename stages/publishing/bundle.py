"""Contents of a published checkpoint: weights, processor, card, predictions, licence.

Refuses anything unfinished or inconsistent.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, Final

from stages.base.code import code_names
from stages.core import layout
from stages.core.dvc_files import read_dvc_file
from stages.core.errors import InputError
from stages.core.git import unknown_commit
from stages.core.outputs import read_json
from stages.core.params import Params
from stages.core.services.secrets import find_leaked_secret
from stages.policy.weights import WEIGHTS, missing_parts, weight_hashes
from stages.publishing.card import Usage, render
from stages.reporting.sources import read_predictions
from stages.scoring.predictions import write_scored
from stages.scoring.tables import in_domain

REQUIRED_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "README.md",
)
PUBLISHED_PATTERNS: Final = ("*.json", WEIGHTS, "*.txt", "*.jinja")
METRICS: Final = layout.REPORT / "metrics.json"
CARDS: Final = layout.REPORT / "cards"

_DATASET: Final = re.compile(r"huggingface\.co/datasets/([\w.-]+/[\w.-]+)")


@dataclass(frozen=True)
class Item:
    """One file: its published name, and its content as a local path or bytes."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Size in bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def sha256(self) -> str:
        """SHA-256 of the content in hex."""
        if isinstance(self.content, bytes):
            return hashlib.sha256(self.content).hexdigest()
        with self.content.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()


@dataclass(frozen=True)
class Bundle:
    """All published files of one checkpoint."""

    checkpoint: str
    items: tuple[Item, ...]
    card: str
    commit: str
    """Commit of this project that trained the checkpoint."""


def gather(name: str, params: Params, repo: str | None, *, allow_dirty: bool = False) -> Bundle:
    """Collect the published files of a checkpoint; `repo`: the repository id in its card.

    Raises InputError, with the command to run, if the checkpoint is unfinished; if it was made from
    uncommitted code, unless `allow_dirty`; if predictions or report belong to another training; and
    if a file contains code or a secret of the environment.
    """
    checkpoint = params.require_checkpoint(name)
    folder = layout.model(name)
    if layout.left_out(name).is_file():
        raise InputError(
            f"{name} was not trained, as its split has too little data: add data, or lower matrix"
            " in params.yaml"
        )
    provenance = _check_finished(name, folder)
    _check_code(str(layout.model(name)), f"train@{name}", provenance, allow_dirty)
    commit = str(provenance.get("git_commit") or "unknown")
    table, origin = read_predictions(layout.predictions(name), f"evaluate@{name}")
    if origin.get("weights") != weight_hashes(folder):
        raise InputError(
            f"{layout.predictions(name)} was computed with other weights than those in {folder}:"
            f" run `dvc repro evaluate@{name} report`"
        )
    _check_code(str(layout.predictions(name)), f"evaluate@{name}", origin, allow_dirty)
    cells = params.cells_of(checkpoint.split)
    _check_report(name, in_domain(table, checkpoint.axis, cells)["correct"].tolist())
    card_path = CARDS / f"{name}.md"
    if not card_path.is_file():
        raise InputError(f"{card_path} is missing: run `dvc repro report`")
    usage = Usage(
        repo_id=repo or f"OWNER/{name}",
        image_size=params.resize.size,
        max_new_tokens=_max_new_tokens(origin, params),
        dtype=_dtype(origin, params),
    )
    card = render(
        card_path.read_text(encoding="utf-8"), name, checkpoint, provenance, usage, _datasets()
    )
    items = [Item("README.md", card.encode())]
    for pattern in PUBLISHED_PATTERNS:
        items += [Item(path.name, path) for path in sorted(folder.glob(pattern))]
    # a training copies the licence of its start; earlier versions of it did not
    licences = [*Path(checkpoint.start).glob("LICENSE*"), *folder.glob("LICENSE*")]
    items += {path.name: Item(path.name, path) for path in licences}.values()
    items.append(Item("provenance.json", layout.training_provenance(name)))
    scored = BytesIO()
    write_scored(scored, table, origin)
    items.append(Item(f"predictions/{name}.parquet", scored.getvalue()))
    _check_secrets(items)
    return Bundle(name, tuple(sorted(items, key=lambda item: item.name)), card, commit)


def _check_finished(name: str, folder: Path) -> dict[str, Any]:
    """Provenance of a complete checkpoint; InputError if it is not complete."""
    run = f"`dvc repro train@{name}`"
    if not folder.is_dir():
        if any((layout.SCRATCH / "train" / name).glob("*/checkpoint-*")):
            raise InputError(f"{folder} is unfinished: {run} resumes where it stopped")
        raise InputError(f"{folder} is missing: {run}")
    missing = [each for each in REQUIRED_FILES if not (folder / each).is_file()]
    problems = [f"{each} is missing" for each in missing] + missing_parts(folder)
    if problems:
        raise InputError(
            f"{folder} is incomplete or corrupt ({'; '.join(problems)}): `dvc checkout {folder}`,"
            f" or {run}"
        )
    provenance = read_json(layout.training_provenance(name), run)
    config = read_json(folder / "config.json", run)
    if not isinstance(provenance, dict) or not isinstance(config, dict):
        raise InputError(
            f"{layout.training_provenance(name)} and {folder}/config.json must contain objects:"
            f" `dvc checkout`, or {run}"
        )
    for path in sorted(folder.glob("*.json")):
        if names := code_names(read_json(path, run)):
            raise InputError(
                f"{path} references code (auto_map: {names[0]}), which others would run: remake"
                f" base and checkpoint, {run}"
            )
    return provenance


def _check_code(what: str, stage: str, origin: dict[str, Any], allow_dirty: bool) -> None:
    """InputError unless the code that made `what` is known and committed."""
    if allow_dirty or (origin.get("git_commit") and origin.get("git_dirty") is False):
        return
    if origin.get("git_dirty"):
        why, remedy = "was made from uncommitted code", "commit"
    else:
        _, remedy = unknown_commit(Path()) or ("", "check with `med-r1 doctor`")
        why = "does not say from which commit it was made"
    raise InputError(
        f"{what} {why}, so nobody can reproduce it: {remedy}, then `dvc repro --single-item"
        f" --force {stage}`, or publish it anyway with --allow-dirty"
    )


def _check_report(name: str, correct: list[bool]) -> None:
    """InputError if the report's numbers are not those of these answers."""
    metrics = read_json(METRICS, "run `dvc repro report`")
    try:
        reported = metrics["checkpoints"][name]["in_domain"]
        accuracy = sum(correct) / len(correct)
        same = reported["n"] == len(correct) and abs(reported["accuracy"] - accuracy) < 1e-4
    except (KeyError, TypeError, ZeroDivisionError):
        same = False
    if not same:
        raise InputError(
            f"{METRICS} does not contain the results of {layout.predictions(name)}: run `dvc repro"
            " report`"
        )


def _max_new_tokens(origin: dict[str, Any], params: Params) -> int:
    """Token limit of the answers in the predictions."""
    evaluate = (origin.get("params") or {}).get("evaluate") or {}
    return int(evaluate.get("max_new_tokens", params.evaluate.max_new_tokens))


def _dtype(origin: dict[str, Any], params: Params) -> str:
    """Data type in which the predictions were computed."""
    settings = origin.get("params") or {}
    evaluate = settings.get("evaluate") or {}
    base = settings.get("base") or {}
    return str(evaluate.get("dtype") or base.get("dtype") or params.base.dtype)


def _datasets() -> list[str]:
    """Data sets of the hub from which data.dvc imports the corpus."""
    deps = read_dvc_file(layout.DATA_DVC).deps if layout.DATA_DVC.is_file() else ()
    names = chain.from_iterable(_DATASET.findall(dep.source) for dep in deps)
    return sorted(set(names))


def _check_secrets(items: list[Item]) -> None:
    for item in items:
        if item.name.endswith((".safetensors", "tokenizer.json")):
            continue
        content = item.content if isinstance(item.content, bytes) else item.content.read_bytes()
        if variable := find_leaked_secret(content):
            raise InputError(
                f"{item.name} contains the value of ${variable}, a secret: remove it, and remake"
                " the checkpoint"
            )

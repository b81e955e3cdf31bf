"""Predictions and training logs, read and checked for being such."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InputError
from stages.scoring.predictions import add_answers, check_columns

LOG_COLUMNS: Final = (
    "step",
    "reward",
    "reward_accuracy",
    "reward_format",
    "kl",
    "completion_length",
    "frac_reward_zero_std",
    "loss",
)
"""The columns of a training log that are drawn, here or by `dvc plots`."""


def read_predictions(path: Path, stage: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One checkpoint's predictions with scored answers, and their provenance; `stage`: their maker.

    InputError if the file is missing, or not what stage evaluate writes.
    """
    remedy = f"make it again: `dvc repro --single-item --force {stage}`"
    try:
        table = pq.read_table(path)
        origin = json.loads(table.schema.metadata[b"provenance"])
    except FileNotFoundError:
        raise _absent(path, stage) from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a parquet file ({error}); {remedy}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not say where it comes from; {remedy}") from error
    check_columns(table, str(path), remedy)
    return add_answers(table).to_pandas(), origin


def check_same_kind(origins: Mapping[str, dict[str, Any]], kind: str | None) -> str | None:
    """The split kind shared by all predictions, None if unknown; InputError on a mismatch."""
    kinds = {name: origin.get("params", {}).get("splits.kind") for name, origin in origins.items()}
    known = {name: each for name, each in kinds.items() if each is not None}
    wanted = kind or next(iter(known.values()), None)
    for name, each in known.items():
        if each != wanted:
            raise InputError(
                f"the predictions of {name!r} were made on {each!r} splits, not on {wanted!r}:"
                " numbers on different questions cannot stand in one report; run `dvc repro"
                f" evaluate@{name}`, or set splits.kind to {each!r}"
            )
    return wanted


def read_training_log(path: Path, stage: str) -> pd.DataFrame:
    """One row a logged step, sorted by step.

    What was not logged (KL without a reference) is NaN.
    """
    try:
        log = pd.read_csv(path)
    except FileNotFoundError:
        raise _absent(path, stage) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is not a table of steps ({error}); make it again with {stage}"
        ) from error
    if missing := [name for name in LOG_COLUMNS if name not in log]:
        raise InputError(f"{path}: no column {missing[0]!r}; make it again with {stage}")
    for name in LOG_COLUMNS:
        numbers = pd.to_numeric(log[name], errors="coerce")
        wrong = numbers.isna() & log[name].notna()
        if wrong.any():
            at = int(wrong.to_numpy().argmax())
            raise InputError(
                f"{path}: row {at}: {name} {log[name].iloc[at]!r} is not a number; make it again"
                f" with {stage}"
            )
        log[name] = numbers
    if log.empty or log["step"].isna().any():
        raise InputError(
            f"{path}: {'no steps in it' if log.empty else 'a row without a step'}; make it again"
            f" with {stage}"
        )
    return log.sort_values("step", ignore_index=True)


def _absent(path: Path, stage: str) -> InputError:
    return InputError(f"{path} not found; make it first: `dvc repro {stage}`")

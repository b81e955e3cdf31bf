"""Read and check predictions and training logs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.errors import InputError, recreate
from stages.scoring.predictions import add_answers, check_columns

LOG_COLUMNS: Final = (
    "step",
    "reward",
    "reward_accuracy",
    "reward_format",
    "kl",
    "completion_length",
    "truncated",
    "frac_reward_zero_std",
    "loss",
)
"""The columns of a training log that are plotted, here or by `dvc plots`."""


def read_predictions(path: Path, stage: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One checkpoint's predictions with scored answers, and their provenance.

    `stage` is the stage that writes them. Raises InputError if the file is missing or is not what
    stage evaluate writes.
    """
    remedy = recreate(stage)
    try:
        table = pq.read_table(path)
        origin = json.loads(table.schema.metadata[b"provenance"])
    except FileNotFoundError:
        raise _missing(path, stage) from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a parquet file ({error}); {remedy}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no provenance in its metadata; {remedy}") from error
    check_columns(table, str(path), remedy)
    return add_answers(table).to_pandas(), origin


def check_same_kind(origins: Mapping[str, dict[str, Any]], kind: str | None) -> str | None:
    """The split kind shared by all predictions, None if unknown; InputError on a mismatch."""
    kinds = {name: origin.get("params", {}).get("splits.kind") for name, origin in origins.items()}
    known = {name: each for name, each in kinds.items() if each is not None}
    expected = kind or next(iter(known.values()), None)
    for name, each in known.items():
        if each != expected:
            raise InputError(
                f"the predictions of {name!r} were made on {each!r} splits, not on {expected!r}: a"
                " report cannot mix different questions; run `dvc repro"
                f" evaluate@{name}`, or set splits.kind to {each!r}"
            )
    return expected


def read_training_log(path: Path, stage: str) -> pd.DataFrame:
    """Read a training log: one row per logged step, sorted; unlogged values (such as KL) are NaN.

    Raises InputError, naming the file and `stage`, if it is missing or malformed.
    """
    remedy = recreate(stage)
    try:
        log = pd.read_csv(path)
    except FileNotFoundError:
        raise _missing(path, stage) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a table of steps ({error}); {remedy}") from error
    if missing := [name for name in LOG_COLUMNS if name not in log]:
        raise InputError(f"{path}: no column {missing[0]!r}; {remedy}")
    for name in LOG_COLUMNS:
        numbers = pd.to_numeric(log[name], errors="coerce")
        wrong = numbers.isna() & log[name].notna()
        if wrong.any():
            row = int(wrong.to_numpy().argmax())
            value = log[name].iloc[row]
            raise InputError(f"{path}: row {row}: {name} {value!r} is not a number; {remedy}")
        log[name] = numbers
    if log.empty:
        raise InputError(f"{path}: no steps; {remedy}")
    if log["step"].isna().any():
        raise InputError(f"{path}: a row without a step; {remedy}")
    return log.sort_values("step", ignore_index=True)


def mean_log(logs: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The mean of training logs, step by step, of those that have a step; one log as it is."""
    if len(logs) == 1:
        return logs[0]
    return pd.concat(logs).groupby("step", as_index=False).mean()


def _missing(path: Path, stage: str) -> InputError:
    return InputError(f"{path} is missing: run `dvc repro {stage}`")

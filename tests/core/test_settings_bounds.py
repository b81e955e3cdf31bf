"""No number in params.yaml reaches a stage that a library would reject there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.core.errors import InputError
from stages.core.params import check_params, load_params
from stages.core.yaml_files import read_yaml
from tests.conftest import ROOT

PARAMS = ROOT / "params.yaml"
BEYOND: dict[type, tuple[Any, ...]] = {
    int: (-(10**30), -7, 2**70, float("nan"), True, "1"),
    float: (float("nan"), float("inf"), float("-inf"), "0.5", -(2.0**1000)),
}


def numbers(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers in a tree."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield path
    for key, value in items:
        yield from numbers(value, (*path, key))


LEAVES = [path for path in numbers(read_yaml(PARAMS)) if path[0] != "checkpoints"]


def with_value(path: tuple[Any, ...], value: Any) -> Any:
    tree = read_yaml(PARAMS)
    group = tree
    for key in path[:-1]:
        group = group[key]
    group[path[-1]] = value
    return tree


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: ".".join(map(str, path)))
def test_numbers_beyond_any_use_are_refused_by_name(path: tuple[Any, ...]) -> None:
    kind = type(_value(path))
    for value in BEYOND[kind]:
        if path == ("dicom", "ct_window", 0) and value == -7:
            continue  # Hounsfield units can be negative
        with pytest.raises(InputError) as caught:
            check_params(with_value(path, value), PARAMS)
        message = str(caught.value)
        assert ".".join(map(str, path)) in message or "ct_window: the width" in message, message
        assert "constrained" not in message


def _value(path: tuple[Any, ...]) -> Any:
    value = read_yaml(PARAMS)
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    "path", [("grpo", "seed"), ("splits", "seed"), ("report", "bootstrap_seed")]
)
def test_every_allowed_seed_is_one_for_all_generators(path: tuple[str, str]) -> None:
    for value in (0, 2**32 - 1):
        params = check_params(with_value(path, value), PARAMS)
        seed = getattr(getattr(params, path[0]), path[1])
        np.random.seed(seed)
        np.random.default_rng(seed)
        torch.Generator().manual_seed(seed)
    for value in (-1, 2**32):
        with pytest.raises(InputError, match=rf"{path[0]}\.{path[1]} = {value}: "):
            check_params(with_value(path, value), PARAMS)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("evaluate", "batch_size"), 0, "evaluate.batch_size = 0: "),
        (("evaluate", "batch_size"), "many", "evaluate.batch_size = 'many': "),
        (("base", "attention"), "flash", "base.attention = 'flash': "),
        (("base", "attention"), {"language": "flash"}, "base.attention.language = 'flash': "),
        (("base", "attention"), {"vision": "sdpa"}, "base.attention.language: missing"),
    ],
)
def test_a_value_of_several_types_is_named_as_it_is_written(
    path: tuple[str, ...], value: Any, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        check_params(with_value(path, value), PARAMS)
    message = str(caught.value)
    assert expected in message
    assert not [word for word in ("constrained", "literal[", "Towers") if word in message]


@pytest.mark.parametrize(
    "window", [[400.0, -1000.0], [1.0, 1.0], [1.0], [0.0, 1.0, 2.0], [0.0, 1e30]]
)
def test_a_window_of_grey_needs_two_levels_in_order(window: list[float]) -> None:
    assert check_params(with_value(("resize", "deep_grey"), [-1000.0, 400.0]), PARAMS)
    with pytest.raises(InputError, match=r"deep_grey"):
        check_params(with_value(("resize", "deep_grey"), window), PARAMS)


def test_rewards_that_weigh_nothing_are_refused() -> None:
    with pytest.raises(InputError, match=r"rewards: every weight is 0"):
        check_params(with_value(("grpo", "rewards"), {"accuracy": 0.0, "format": 0.0}), PARAMS)


def test_the_file_itself_is_accepted() -> None:
    assert load_params(Path(PARAMS)).report.images is True

"""Groups stay whole, shares are met where group sizes allow, and new data moves little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import chain, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.splitting.stratify import Group, Stratum, stratify
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES

STRATA: list[Stratum] = list(product(list(MODALITIES)[:3], list(QUESTION_TYPES)[:3]))


def shares(groups: Mapping[str, Group], train: set[str]) -> dict[Any, tuple[float, int]]:
    """Modality, type or stratum -> (share of its questions in train, number of questions)."""
    total: Counter[Any] = Counter()
    trained: Counter[Any] = Counter()
    for name, group in groups.items():
        for stratum, n in group.items():
            for key in (stratum, *stratum):
                total[key] += n
                trained[key] += n * (name in train)
    return {key: (trained[key] / n, n) for key, n in total.items()}


def random_groups(
    rng: np.random.Generator, number: int, largest: int
) -> dict[str, dict[Stratum, int]]:
    """Groups of one modality each, with up to two strata of `largest` questions."""
    groups = {}
    for index in range(number):
        modality = STRATA[int(rng.integers(len(STRATA)))][0]
        kinds = [stratum for stratum in STRATA if stratum[0] == modality]
        groups[f"{modality}/{index}"] = {
            kinds[int(k)]: int(rng.integers(1, largest + 1)) for k in rng.integers(3, size=2)
        }
    return groups


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.integers(300, 600),
    st.integers(1, 6),
    st.sampled_from([0.5, 0.7, 0.8, 0.9]),
)
def test_shares_are_within_a_point_of_each_modality_type_and_stratum(
    seed: int, number: int, largest: int, share: float
) -> None:
    groups = random_groups(np.random.default_rng(seed), number, largest)
    for key, (train_share, n) in shares(groups, stratify(groups, share, 42)).items():
        assert abs(train_share - share) <= max(0.01, 1 / n), key


def test_small_groups_even_out_large_ones() -> None:
    rng = np.random.default_rng(3)
    sizes = np.rint(rng.lognormal(1, 1.2, 400)).astype(int) + 1
    assert sizes.max() > 50
    kinds = rng.integers(3, size=400)
    groups = {
        str(index): {STRATA[int(k)]: int(n)}
        for index, (k, n) in enumerate(zip(kinds, sizes, strict=True))
    }
    for key, (train_share, _) in shares(groups, stratify(groups, 0.8, 42)).items():
        assert abs(train_share - 0.8) <= 0.01, key


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 40), st.randoms(use_true_random=False))
def test_the_order_of_groups_does_not_matter(seed: int, number: int, random: Any) -> None:
    groups = random_groups(np.random.default_rng(seed), number, 4)
    items = list(groups.items())
    random.shuffle(items)
    assert stratify(dict(items), 0.8, 42) == stratify(groups, 0.8, 42)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_no_side_of_a_modality_with_enough_groups_is_empty(seed: int, number: int) -> None:
    groups = random_groups(np.random.default_rng(seed), number, 1)
    strata = Counter(modality for modality, _ in chain.from_iterable(groups.values()))
    train = stratify(groups, 0.8, 42)
    for key, (train_share, _) in shares(groups, train).items():
        if strata[key] >= 4:
            assert 0 < train_share < 1


def test_data_of_one_modality_moves_no_group_of_another_and_few_of_its_own() -> None:
    groups = random_groups(np.random.default_rng(1), 600, 3)
    more = groups | {f"mri/new{index}": {("mri", STRATA[0][1]): 2} for index in range(40)}
    before = stratify(groups, 0.8, 42)
    after = stratify(more, 0.8, 42)
    moved = {name for name in groups if (name in before) != (name in after)}
    assert {name.split("/")[0] for name in moved} <= {"mri"}
    assert len(moved) <= 12


def test_a_group_that_spans_modalities_is_on_one_side_and_counted_in_both() -> None:
    groups: dict[str, dict[Stratum, int]] = {
        f"{modality}/{index}": {(modality, "k"): 1}
        for modality, index in product(("ct", "mri"), range(80))
    }
    groups |= {f"both/{index}": {("ct", "k"): 2, ("mri", "k"): 2} for index in range(10)}
    for key, (train_share, _) in shares(groups, stratify(groups, 0.8, 42)).items():
        assert abs(train_share - 0.8) <= 0.01, key


def test_the_draw_depends_on_the_seed_alone() -> None:
    groups = random_groups(np.random.default_rng(1), 100, 2)
    draws = [frozenset(stratify(groups, 0.8, seed)) for seed in (42, 42, 43)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("names", [[], ["a"]])
def test_too_few_groups_are_no_error(names: list[str]) -> None:
    assert len(stratify({name: {STRATA[0]: 5} for name in names}, 0.8, 42)) == len(names)

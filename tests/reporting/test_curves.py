"""Curves are reduced to few points, share a scale and skip gaps."""

from itertools import chain

import numpy as np
import pytest

from stages.reporting.curves import POINTS, ends, interval_scale, reward_panels, sparklines, thinned
from tests.fakes import make_training_log


def test_a_long_log_is_reduced_to_means_of_blocks() -> None:
    log = make_training_log("ct", steps=3000)
    blocks = thinned(log)
    assert len(blocks) == POINTS
    assert blocks["reward"].iloc[0] == pytest.approx(log["reward"].iloc[:25].mean())
    assert blocks["reward"].mean() == pytest.approx(log["reward"].mean())


def test_a_short_log_is_not_reduced() -> None:
    log = make_training_log("ct", steps=24)
    assert thinned(log) is log


def test_ends_are_means_over_the_first_and_last_tenth() -> None:
    log = make_training_log("ct", steps=40)
    assert ends(log["reward"]) == pytest.approx(
        (log["reward"].iloc[:4].mean(), log["reward"].iloc[-4:].mean())
    )


def test_panels_share_a_scale_that_contains_every_reward() -> None:
    chart = reward_panels({name: make_training_log(name) for name in ("ct", "mri")})
    lines = chain.from_iterable(panel["lines"].values() for panel in chart["panels"])
    points = chain.from_iterable(line.split() for line in lines)
    heights = [float(point.split(",")[1]) for point in points]
    assert 0 <= min(heights) <= max(heights) <= chart["height"]
    assert [text for _, text in chart["ticks"]] == ["0", "1", "2"]


def test_values_that_were_not_logged_are_not_drawn() -> None:
    without = make_training_log("ct").assign(kl=np.nan)
    gap = make_training_log("mri")
    gap.loc[3, "kl"] = np.nan
    lines = sparklines({"ct": without, "mri": gap}, "kl")
    assert lines["ct"] is None
    assert lines["mri"] is not None
    assert len(lines["mri"]["line"].split()) == 23


def test_a_log_of_one_step_can_be_drawn() -> None:
    (panel,) = reward_panels({"ct": make_training_log("ct", steps=1)})["panels"]
    assert len(panel["lines"]["reward"].split()) == 1


def test_the_interval_scale_contains_zero_and_every_interval() -> None:
    scale = interval_scale([{"low": 0.1, "high": 0.3}, {"low": 0.2, "high": 0.6}])
    assert scale.low < 0 < 0.6 < scale.high
    assert scale(scale.low) == 0
    assert scale(scale.high) == scale.end
    assert 0 in scale.ticks(5)

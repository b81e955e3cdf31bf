"""Curves as they are drawn: short enough, on one scale, gaps left out."""

import numpy as np
import pytest

from stages.reporting.curves import POINTS, ends, interval_scale, reward_panels, sparklines, thinned
from tests.fakes import make_training_log


def test_a_long_log_is_drawn_as_means_of_blocks() -> None:
    log = make_training_log("ct", steps=3000)
    drawn = thinned(log)
    assert len(drawn) == POINTS
    assert drawn["reward"].iloc[0] == pytest.approx(log["reward"].iloc[:25].mean())
    assert drawn["reward"].mean() == pytest.approx(log["reward"].mean())


def test_a_short_log_is_drawn_step_by_step() -> None:
    log = make_training_log("ct", steps=24)
    assert thinned(log) is log


def test_ends_are_means_over_the_first_and_last_tenth() -> None:
    log = make_training_log("ct", steps=40)
    assert ends(log["reward"]) == pytest.approx(
        (log["reward"].iloc[:4].mean(), log["reward"].iloc[-4:].mean())
    )


def test_panels_share_a_scale_that_holds_every_reward() -> None:
    drawn = reward_panels({name: make_training_log(name) for name in ("ct", "mri")})
    heights = [
        float(point.split(",")[1])
        for panel in drawn["panels"]
        for line in panel["lines"].values()
        for point in line.split()
    ]
    assert 0 <= min(heights) <= max(heights) <= drawn["height"]
    assert [text for _, text in drawn["ticks"]] == ["0", "1", "2"]


def test_what_was_not_logged_is_not_drawn() -> None:
    without = make_training_log("ct").assign(kl=np.nan)
    gap = make_training_log("mri")
    gap.loc[3, "kl"] = np.nan
    drawn = sparklines({"ct": without, "mri": gap}, "kl")
    assert drawn["ct"] is None
    assert drawn["mri"] is not None
    assert len(drawn["mri"]["line"].split()) == 23


def test_a_log_of_one_step_can_be_drawn() -> None:
    assert (
        len(
            reward_panels({"ct": make_training_log("ct", steps=1)})["panels"][0]["lines"][
                "reward"
            ].split()
        )
        == 1
    )


def test_the_interval_scale_holds_zero_and_every_interval() -> None:
    scale = interval_scale([{"low": 0.1, "high": 0.3}, {"low": 0.2, "high": 0.6}])
    assert scale.low < 0 < 0.6 < scale.high
    assert scale(scale.low) == 0
    assert scale(scale.high) == scale.end
    assert 0 in scale.ticks(5)

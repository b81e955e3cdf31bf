"""Activations of the profiles are those that autograd saves in our passes."""

from __future__ import annotations

import pytest

from benchmarks.activations import MODELS, measure
from benchmarks.grpo_step.setting import MODEL_OF
from stages.profiles.schema import load_profile
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["full", "full-3b"])
def test_the_profiles_have_the_measured_activations(profile: str) -> None:
    name = MODEL_OF[profile]
    assert name in MODELS
    result = measure(name, shallower=4)
    model = load_profile(profile, ROOT / "infra" / "profiles")[1].model
    assert model is not None
    assert model.prompt_mb == pytest.approx(result["autocast"]["prompt_mb"], rel=0.1)
    assert model.token_mb == pytest.approx(result["autocast"]["token_mb"], rel=0.1)
    # float32 residuals and norms, and a copy of its input for each linear map
    for key, ratio in (("prompt_mb", 1.03), ("token_mb", 1.1)):
        assert result["autocast"][key] > ratio * result["bfloat16"][key]

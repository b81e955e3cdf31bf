"""Several trainings per GPU are refused where the estimate says that they do not fit."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from flows.scheduling import gpu_share
from flows.scheduling.gpu_share import check_shares, smallest_memory, training_memory
from flows.scheduling.slots import find_slots
from stages.core import disk_space
from stages.core.errors import InputError
from stages.core.params import load_params
from stages.profiles.needs import memory
from stages.profiles.schema import load_profile
from stages.profiles.splice import set_values
from tests.conftest import ROOT

H200 = 150_754_820_096


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with the profiles in infra/profiles, and two H200."""
    for name in ("params.yaml", "data.dvc"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "infra" / "profiles", tmp_path / "infra" / "profiles")
    monkeypatch.setattr(gpu_share, "smallest_memory", lambda _: H200)
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 2 * 10**12)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return tmp_path


@cache
def with_profile(text: str) -> str:
    """params.yaml as `med-r1 profile` writes it, for `full` or a profile of `text` beside it."""
    if not text:
        name, profile = "full", load_profile("full")[1]
    else:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "own.yaml"
            path.write_text(text, encoding="utf-8")
            name, profile = "own.yaml", load_profile(str(path), ROOT / "infra" / "profiles")[1]
    params = ROOT / "params.yaml"
    return set_values(params.read_text(encoding="utf-8"), profile.params, name, params)


def set_profile(root: Path, text: str = "") -> None:
    """Set the profile `full`, or one of `text`."""
    (root / "params.yaml").write_text(with_profile(text), encoding="utf-8")
    if text:
        (root / "own.yaml").write_text(text, encoding="utf-8")


def test_a_training_that_does_not_fit_into_its_share_is_refused_with_numbers_and_remedy(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_profile(root)
    needed = training_memory(root)
    model = load_profile("full")[1].model
    assert model is not None
    assert needed == sum(memory(load_params(root / "params.yaml"), model).values())
    assert H200 / 3 < needed < H200 / 2
    numbers = r"about 67\.8 GiB .* 1/3 of 140\.4 GiB is 46\.8 GiB: use at most 2, or lower"
    with pytest.raises(InputError, match=numbers):
        find_slots(root, slots_per_gpu=3)
    assert len(find_slots(root, slots_per_gpu=2).names) == 4
    assert find_slots(root).names == ("0", "1")
    monkeypatch.setattr(gpu_share, "smallest_memory", lambda _: 2 * needed)
    assert len(find_slots(root, slots_per_gpu=2).names) == 4
    with pytest.raises(InputError, match="use at most 2"):
        find_slots(root, slots_per_gpu=3)


def test_memory_is_that_of_the_most_images_of_a_question(root: Path) -> None:
    several = (
        "extends: full\n"
        "scale: {questions: 100, images: 400, images_per_question: 2.0,"
        " most_images_per_question: 8}\n"
        "params:\n  grpo: {prompts_per_device: 1, gradient_accumulation_steps: 4}\n"
    )
    set_profile(root, several)
    model = load_profile("full")[1].model
    assert model is not None
    params = load_params(root / "params.yaml")
    one, eight = (sum(memory(params, model, images).values()) for images in (1, 8))
    assert training_memory(root) == eight > one


def test_states_of_all_trainings_at_a_time_must_fit_on_the_disk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = "extends: full\nparams:\n  grpo: {prompts_per_device: 1, fused_head: true}\n"
    set_profile(root, fused)
    state = 3 * 4 * 2_209_000_000
    # two GPUs with two trainings each, three states per training
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 12 * state)
    check_shares(root, ["0", "1"], 2)
    monkeypatch.setattr(disk_space, "free_bytes", lambda _: 12 * state - 1)
    with pytest.raises(InputError, match=r"4 trainings at a time write 296\.2 GiB of states"):
        check_shares(root, ["0", "1"], 2)
    check_shares(root, ["0"], 2)
    # states that are there already are not written again
    folder = root / ".scratch" / "train" / "ct"
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(b"0")
    check_shares(root, ["0", "1"], 2)


def test_the_largest_training_decides(root: Path) -> None:
    small = (
        "extends: full\nparams:\n  grpo: {prompts_per_device: 1, gradient_accumulation_steps: 4}\n"
    )
    set_profile(root, small)
    check_shares(root, ["0"], 2)
    path = root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    one = (
        "  ct: {axis: modality, split: ct, method: grpo, images: data/images/ct, start: models/base"
    )
    assert one in text
    larger = text.replace(one, f"{one}, grpo: {{prompts_per_device: 5}}")
    path.write_text(larger, encoding="utf-8")
    with pytest.raises(InputError, match="use at most 1"):
        check_shares(root, ["0"], 2)


@pytest.mark.parametrize("change", ["sample", "another base", "no file of the profile"])
def test_nothing_is_refused_where_the_model_is_unknown(root: Path, change: str) -> None:
    if change != "sample":
        set_profile(root)
        assert training_memory(root) is not None
    if change == "another base":
        path = root / "params.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("Qwen/Qwen2-VL-2B-Instruct", "me/mine", 1), encoding="utf-8")
    elif change == "no file of the profile":
        shutil.rmtree(root / "infra" / "profiles")
    assert training_memory(root) is None
    check_shares(root, ["0"], 12)


def test_nothing_is_refused_where_the_memory_is_unknown(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_profile(root)
    monkeypatch.setattr(gpu_share, "smallest_memory", lambda _: None)
    check_shares(root, ["0"], 12)


def test_the_smallest_of_the_gpus_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def query(words: list[str], **_: Any) -> Any:
        asked.append(words)
        return SimpleNamespace(stdout="81559\n46068\n")

    monkeypatch.setattr(subprocess, "run", query)
    assert smallest_memory(["0", "3"]) == 46068 * 2**20
    assert "--id=0,3" in asked[0]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="[N/A]\n"))
    assert smallest_memory(["0"]) is None

    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert smallest_memory(["0"]) is None

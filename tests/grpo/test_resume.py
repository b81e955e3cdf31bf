"""A resumed training gives the weights of an uninterrupted one, bit for bit."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from stages.grpo import resume
from stages.grpo.resume import MANIFEST, prune_checkpoints
from stages.grpo.trainer import LOGGED, deterministic
from stages.policy.fingerprint import files_hash, fingerprint, prepare_state_folder
from tests.grpo.tiny import Stopped, assert_resumes_exactly, tiny_trainer, train_and_log


def run(folder: Path, settings: dict[str, Any], **options: Any) -> dict[str, torch.Tensor]:
    deterministic(1)
    return train_and_log(tiny_trainer(folder, **settings), folder, **options)


BASE_SETTINGS: dict[str, Any] = {
    "max_steps": 6,
    "save_steps": 2,
    "learning_rate": 1e-3,
    "prompts_per_device": 1,
    "num_train_epochs": 9.0,
}


@pytest.mark.parametrize(
    ("settings", "stop_after"),
    [
        ({}, 3),  # two prompts, one per step: step 4 is in the second epoch
        ({"gradient_accumulation_steps": 2}, 7),
        # two updates per batch of completions and a checkpoint between them: the rest of the batch
        # is saved
        ({"num_iterations": 2, "reuse_prompt_pass": False, "save_steps": 3}, 4),
        ({"num_iterations": 2, "reuse_prompt_pass": False, "save_steps": 3, "engine": "trl"}, 4),
        ({"lora": {"rank": 2, "alpha": 4, "dropout": 0.5, "target_modules": ["q_proj"]}}, 5),
        ({"logging_steps": 2, "vision_cache_mb": 10}, 5),
        ({"save_steps": 0, "save_minutes": 1e-9}, 4),
        ({"draft_nodes": 0}, 3),
    ],
)
def test_weights_and_log_equal_those_of_an_uninterrupted_run(
    settings: dict[str, Any], stop_after: int, tmp_path: Path
) -> None:
    assert_resumes_exactly(partial(run, settings=BASE_SETTINGS | settings), tmp_path, stop_after)


def test_saved_completions_are_restored_to_the_device_of_the_policy(tmp_path: Path) -> None:
    settings = BASE_SETTINGS | {"num_iterations": 2, "reuse_prompt_pass": False, "save_steps": 3}
    with pytest.raises(Stopped):
        run(tmp_path, settings, stop_after=4)
    checkpoint = prune_checkpoints(tmp_path / "state")
    assert checkpoint
    _, batches, *_ = resume._read_rollout(checkpoint, 0, torch.device("meta"))
    assert batches
    for batch in batches:
        tensors = [*batch.values(), *vars(batch["rollout"].prompts).values()]
        devices = {each.device.type for each in tensors if isinstance(each, torch.Tensor)}
        assert devices == {"meta"}


@pytest.fixture(scope="module")
def stopped_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a training that was stopped after five steps."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        run(folder, BASE_SETTINGS, stop_after=5)
    return folder / "state"


@pytest.mark.parametrize("damage", ["truncated file", "missing file", "no manifest", "half of it"])
def test_an_incomplete_checkpoint_is_skipped_and_removed(
    damage: str, stopped_state: Path, tmp_path: Path
) -> None:
    state = Path(shutil.copytree(stopped_state, tmp_path / "state"))
    last = state / "checkpoint-4"
    assert prune_checkpoints(state) == last
    broken = state / "checkpoint-6"
    shutil.copytree(last, broken)
    if damage == "truncated file":
        (broken / "model.safetensors").write_bytes(b"half")
    elif damage == "missing file":
        (broken / "optimizer.pt").unlink()
    elif damage == "no manifest":
        (broken / MANIFEST).unlink()
    else:
        (broken / MANIFEST).write_text("{", encoding="utf-8")
    assert prune_checkpoints(state) == last
    assert not broken.exists()
    assert (state / "checkpoint-2").exists()


def test_the_last_two_checkpoints_are_kept_but_none_of_the_last_step(tmp_path: Path) -> None:
    run(tmp_path, BASE_SETTINGS | {"save_steps": 1})
    names = sorted(path.name for path in (tmp_path / "state").glob("checkpoint-*"))
    assert names == ["checkpoint-4", "checkpoint-5"]


def test_states_are_saved_by_time_at_logged_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 10**6, 30))  # half a minute between two looks at the clock
    # of this module alone: other threads of the process look at the clock too
    clock = SimpleNamespace(monotonic=lambda: float(next(now)))
    monkeypatch.setattr("stages.grpo.resume.time", clock)
    settings = {"save_steps": 0, "save_minutes": 1.0, "logging_steps": 2, "max_steps": 12}
    run(tmp_path, BASE_SETTINGS | settings)
    steps = sorted(int(path.name[11:]) for path in (tmp_path / "state").glob("checkpoint-*"))
    assert steps
    assert all(step % 2 == 0 for step in steps)
    assert len(steps) <= 2


def test_no_checkpoint_without_save_steps(tmp_path: Path) -> None:
    run(tmp_path, BASE_SETTINGS | {"save_steps": 0, "max_steps": 2})
    assert prune_checkpoints(tmp_path / "state") is None


def test_a_checkpoint_contains_no_pickled_objects(stopped_state: Path) -> None:
    checkpoint = prune_checkpoints(stopped_state)
    assert checkpoint
    for path in checkpoint.iterdir():
        assert path.suffix in (".safetensors", ".json", ".jinja", ".pt", ".pth", ".bin"), path.name
    torch.load(checkpoint / "optimizer.pt", weights_only=True)
    torch.load(checkpoint / "scheduler.pt", weights_only=True)


def test_state_of_other_settings_is_removed(tmp_path: Path) -> None:
    one = fingerprint({"grpo": {"seed": 1}})
    other = fingerprint({"grpo": {"seed": 2}})
    assert one != other
    assert one == fingerprint(json.loads(json.dumps({"grpo": {"seed": 1}})))
    prepare_state_folder(tmp_path / one)
    (tmp_path / one / "checkpoint-1").mkdir()
    prepare_state_folder(tmp_path / other)
    assert [path.name for path in tmp_path.iterdir()] == [other]


def test_the_hash_of_files_depends_on_names_and_contents(tmp_path: Path) -> None:
    one = tmp_path / "a"
    two = tmp_path / "b"
    one.write_text("x", encoding="utf-8")
    two.write_text("x", encoding="utf-8")
    assert files_hash([one]) != files_hash([two])
    assert files_hash([one, two]) == files_hash([two, one])
    before = files_hash([one])
    one.write_text("y", encoding="utf-8")
    assert files_hash([one]) != before


def test_the_log_has_a_column_per_logged_number(tmp_path: Path) -> None:
    run(tmp_path, BASE_SETTINGS | {"save_steps": 0, "max_steps": 1})
    header = (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.split(",") == ["step", *LOGGED.values()]

"""A training that was stopped gives the weights of one that was not, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.grpo.resume import MANIFEST, newest_checkpoint
from stages.grpo.trainer import LOGGED, deterministic, write_log
from stages.policy.fingerprint import files_hash, fingerprint, prepare_state_folder
from tests.grpo.tiny import trainer


class Stopped(Exception):
    """What a kill looks like from inside: nothing is finished, nothing tidied up."""


def run(
    folder: Path, settings: dict[str, Any], stop_after: int | None = None, resume: bool = False
) -> dict[str, torch.Tensor]:
    deterministic(1)
    each = trainer(folder, **settings)
    if stop_after:
        original, count = each.training_step, [0]

        def step(*arguments: Any, **more: Any) -> Any:
            if count[0] == stop_after:
                raise Stopped
            count[0] += 1
            return original(*arguments, **more)

        each.training_step = step
    checkpoint = newest_checkpoint(folder / "state") if resume else None
    assert bool(checkpoint) == resume
    each.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    write_log(each.state.log_history, folder / "log.csv")
    return {name: parameter.detach().clone() for name, parameter in each.model.named_parameters()}


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
        ({}, 3),  # two prompts, one a step: step 4 lies in the second epoch
        ({"gradient_accumulation_steps": 2}, 7),
        # two updates a batch of completions and a state saved between them: what is left of the
        # batch is kept
        ({"num_iterations": 2, "reuse_prompt_pass": False, "save_steps": 3}, 4),
        ({"num_iterations": 2, "reuse_prompt_pass": False, "save_steps": 3, "engine": "trl"}, 4),
        ({"lora": {"rank": 2, "alpha": 4, "dropout": 0.5, "target_modules": ["q_proj"]}}, 5),
        ({"logging_steps": 2, "vision_cache_mb": 10}, 5),
    ],
)
def test_weights_and_log_are_those_of_an_undisturbed_run(
    settings: dict[str, Any], stop_after: int, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    settings = BASE_SETTINGS | settings
    undisturbed = run(whole, settings)
    with pytest.raises(Stopped):
        run(parts, settings, stop_after=stop_after)
    resumed = run(parts, settings, resume=True)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    assert (whole / "log.csv").read_bytes() == (parts / "log.csv").read_bytes()


def test_a_checkpoint_that_was_not_written_whole_is_passed_over_and_removed(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, BASE_SETTINGS, stop_after=5)
    state = tmp_path / "state"
    good, last = state / "checkpoint-2", state / "checkpoint-4"
    assert newest_checkpoint(state) == last
    for harm in ("a file truncated", "a file missing", "no list of files", "half a list of files"):
        broken = state / "checkpoint-6"
        shutil.copytree(last, broken)
        if harm == "a file truncated":
            (broken / "model.safetensors").write_bytes(b"half")
        elif harm == "a file missing":
            (broken / "optimizer.pt").unlink()
        elif harm == "no list of files":
            (broken / MANIFEST).unlink()
        else:
            (broken / MANIFEST).write_text("{", encoding="utf-8")
        assert newest_checkpoint(state) == last, harm
        assert not broken.exists()
    assert good.exists()


def test_no_more_than_two_checkpoints_are_kept_and_none_of_the_last_step(tmp_path: Path) -> None:
    run(tmp_path, BASE_SETTINGS | {"save_steps": 1})
    assert sorted(path.name for path in (tmp_path / "state").glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-5",
    ]


def test_no_checkpoint_without_save_steps(tmp_path: Path) -> None:
    run(tmp_path, BASE_SETTINGS | {"save_steps": 0, "max_steps": 2})
    assert newest_checkpoint(tmp_path / "state") is None


def test_nothing_in_a_checkpoint_needs_unpickling_of_objects(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, BASE_SETTINGS, stop_after=3)
    checkpoint = newest_checkpoint(tmp_path / "state")
    assert checkpoint
    for path in checkpoint.iterdir():
        assert path.suffix in (".safetensors", ".json", ".jinja", ".pt", ".pth", ".bin"), path.name
    torch.load(checkpoint / "optimizer.pt", weights_only=True)
    torch.load(checkpoint / "scheduler.pt", weights_only=True)


def test_other_settings_have_another_state_and_the_old_one_goes(tmp_path: Path) -> None:
    one, other = fingerprint({"grpo": {"seed": 1}}), fingerprint({"grpo": {"seed": 2}})
    assert one != other
    assert one == fingerprint(json.loads(json.dumps({"grpo": {"seed": 1}})))
    prepare_state_folder(tmp_path / one)
    (tmp_path / one / "checkpoint-1").mkdir()
    prepare_state_folder(tmp_path / other)
    assert [path.name for path in tmp_path.iterdir()] == [other]


def test_the_hash_of_files_knows_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_text("x", encoding="utf-8")
    two.write_text("x", encoding="utf-8")
    assert files_hash([one]) != files_hash([two])
    assert files_hash([one, two]) == files_hash([two, one])
    before = files_hash([one])
    one.write_text("y", encoding="utf-8")
    assert files_hash([one]) != before


def test_every_logged_name_is_a_column(tmp_path: Path) -> None:
    run(tmp_path, BASE_SETTINGS | {"save_steps": 0, "max_steps": 1})
    header = (tmp_path / "log.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.split(",") == ["step", *LOGGED.values()]

"""Runs in Weights & Biases: what they say, what they must not, and that no result hangs on them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stages import evaluate, report, train
from stages.core import layout
from stages.core.errors import ExitCode, InputError
from stages.core.params import Params, load_params
from stages.core.services.tracking import TrackingRun, check_tracking, tracked
from stages.core.yaml_files import dump_yaml, read_yaml
from tests.fakes import write_project
from tests.workspaces import REPOSITORY, small_workspace

KEY = "0123456789abcdef0123456789abcdef01234567"
HOST = "a-host-that-nobody-needs-to-know"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without wandb's variables, with two secrets and its own host name."""
    for name in ("WANDB_MODE", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")  # put back at the end, whatever is set in between
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)


def params(**tracking: Any) -> Params:
    """Those of the repository, with other words on tracking."""
    settings = load_params(REPOSITORY / "params.yaml")
    return settings.model_copy(update={"tracking": settings.tracking.model_copy(update=tracking)})


def kept(root: Path, job: str, *words: str) -> bytes:
    """All files of a job's only run except staged artifacts; `words` must occur in them.

    They are waited for: the run is over when wandb's service knows all of it, which is a moment
    before the disk has it.
    """
    (folder,) = (root / layout.SCRATCH / "wandb").glob(f"offline-run-*-{job}-*")
    deadline = time.monotonic() + 30
    while True:
        content = b"\n".join(
            path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        )
        missing = [word for word in words if word.encode() not in content]
        if not missing:
            return content
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def run_stage(module: Any, checkpoint: str, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["stage", checkpoint])
    module.main()


def set_tracking(root: Path, how: str) -> None:
    tree = read_yaml(root / layout.PARAMS)
    tree["tracking"]["wandb"] = how
    (root / layout.PARAMS).write_text(dump_yaml(tree), encoding="utf-8")


def test_training_and_test_are_runs_of_their_checkpoint_and_hold_numbers_settings_and_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_workspace(tmp_path)
    run_stage(train, "ct", monkeypatch, tmp_path)
    weights = (tmp_path / layout.model("ct") / "model.safetensors").read_bytes()
    assert not (tmp_path / layout.SCRATCH / "wandb").exists(), "off as it comes"
    set_tracking(tmp_path, "offline")
    run_stage(train, "ct", monkeypatch, tmp_path)
    run_stage(evaluate, "ct", monkeypatch, tmp_path)
    assert (tmp_path / layout.model("ct") / "model.safetensors").read_bytes() == weights, (
        "what is told changes nothing"
    )
    told = capsys.readouterr().err
    assert "wandb: ct, train: kept in .scratch/wandb/offline-run-" in told
    settings = ('"lr_scheduler":"linear"', "git_commit", "no-think", "modality")
    trained = kept(
        tmp_path, "ct-train", "train/reward", "train/kl", *settings, "hashes.json", "ct-train"
    )
    tested = kept(
        tmp_path, "ct-evaluate", "test/completion_tokens", "ct-predictions", '"max_new_tokens":12'
    )
    for content in (trained, tested):
        for secret in (KEY, "hf_0123456789", HOST, str(tmp_path / "home")):
            assert secret.encode() not in content, secret
    assert not (tmp_path / "home").exists(), "nothing is written beside the workspace"


def test_a_report_tracks_the_accuracies_of_each_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, per_cell=8)
    tree = read_yaml(tmp_path / layout.PARAMS)
    tree["checkpoints"] = {"ct": tree["checkpoints"]["ct"]}
    tree["evaluations"] = {name: tree["evaluations"][name] for name in ("base", "ct")}
    tree["tracking"]["wandb"] = "offline"
    (tmp_path / layout.PARAMS).write_text(dump_yaml(tree), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        "WANDB_API_KEY", KEY[::-1]
    )  # KEY itself is the commit in the made-up provenance
    report.make()
    for name, axis in (("base", "task/lesion-grading"), ("ct", "modality/ct")):
        kept(
            tmp_path,
            f"{name}-report",
            f"test/{axis}",
            f"test/{axis}/blank",
            f"test/{axis}/shuffled",
        )


def test_a_job_that_is_killed_and_goes_on_is_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = params(wandb="offline")
    with (
        pytest.raises(KeyboardInterrupt),
        tracked(settings, "train", "ct", {"seed": 1}, identity="x"),
    ):
        raise KeyboardInterrupt
    for identity in ("x", "y"):
        with tracked(settings, "train", "ct", {"seed": 1}, identity=identity) as run:
            run.log({"train/loss": 1.0}, 1)
    names = sorted(
        path.name.partition("-ct-train-")[2][:12]
        for path in (layout.SCRATCH / "wandb").glob("offline-run-*")
    )
    assert len(names) == 3
    assert len(set(names)) == 2


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_online_without_a_key_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    small_workspace(tmp_path)
    set_tracking(tmp_path, "online")
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / layout.model("ct")).symlink_to("base")
    command = [sys.executable, "-m", f"stages.{stage}", "ct"]
    # a process of its own: wandb does not forget a key that it has seen
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.INPUT
    assert done.stderr.startswith(
        "error: tracking.wandb is online, and no key for it is here: set WANDB_API_KEY"
    )


def test_a_server_that_does_not_answer_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    settings = params(wandb="online")
    check_tracking(settings.tracking)
    assert "wandb: cannot log in" in capsys.readouterr().err
    with tracked(settings, "train", "ct", {}, identity="x") as run:
        run.log({"train/loss": 1.0}, 1)
    kept(tmp_path, "ct-train", "train/loss")


def test_a_secret_among_the_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(
            InputError, match=r"the settings hold the value of \$WANDB_API_KEY, a secret"
        ),
        tracked(
            params(wandb="offline"),
            "train",
            "ct",
            {"base": {"source": f"/models/{KEY}"}},
            identity="x",
        ),
    ):
        pass


def test_a_run_that_breaks_is_told_once_and_takes_nothing_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Broken:
        def log(self, values: Mapping[str, float], step: int) -> None:
            raise BrokenPipeError("the service is gone")

    run = TrackingRun(Broken())
    run.log({"loss": 1.0}, 1)
    run.log({"loss": 1.0}, 2)
    run.finish(0)
    assert (
        capsys.readouterr().err
        == "wandb: log failed (the service is gone): no more is reported of this run; its results"
        " are whole\n"
    )


@pytest.mark.parametrize(
    ("setting", "variable", "left"),
    [("none", "online", 0), ("online", "disabled", 0), ("online", "offline", 1)],
)
def test_the_environment_may_say_less_than_the_settings(
    setting: str, variable: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", variable)
    settings = params(wandb=setting)
    check_tracking(settings.tracking)
    with tracked(settings, "evaluate", "base", {}, identity="x"):
        pass
    assert len(list((tmp_path / layout.SCRATCH / "wandb").glob("offline-run-*"))) == left


def test_a_mode_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "on")
    with pytest.raises(
        InputError,
        match=(
            r"WANDB_MODE = 'on' in the environment: allowed are online, offline, dryrun, disabled"
        ),
    ):
        check_tracking(params(wandb="offline").tracking)

"""Worker start scripts: refusals with real git, and one clone per worker."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.doctor.server import worker_name

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "infra" / "worker.sh"
SBATCH = ROOT / "infra" / "slurm" / "worker.sbatch"
TRAIN = ROOT / "infra" / "slurm" / "train.sbatch"
SCRIPTS = pytest.mark.parametrize("script", [WORKER, SBATCH, TRAIN], ids=lambda path: path.name)
SLURM = {
    "SLURM_ARRAY_JOB_ID": "7",
    "SLURM_ARRAY_TASK_ID": "0",
    "SLURM_SUBMIT_DIR": str(ROOT),
    "CUDA_VISIBLE_DEVICES": "0",
    "PREFECT_API_URL": "http://127.0.0.1:9/api",
    "PREFECT_API_AUTH_STRING": "some:body",
    "MED_R1_WORKSPACES": "/nowhere",
}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository of one file and two commits, the first tagged v1."""
    folder = tmp_path / "source"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    for number in (1, 2):
        (folder / "dvc.lock").write_text(f"{number}\n", encoding="utf-8")
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "--message", f"Commit {number}")
        if number == 1:
            git(folder, "tag", "v1")
    return folder


def run(script: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": os.environ.get("HOME", "/"),
        **variables,
    }
    return subprocess.run(
        ["bash", str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def start(
    source: Path, root: Path, revision: str = "", pool: str = "gpu", **more: str
) -> subprocess.CompletedProcess[str]:
    """Start a worker of a server that is not there."""
    variables = {
        "MED_R1_REPOSITORY": str(source),
        "MED_R1_ROOT": str(root),
        "MED_R1_REVISION": revision,
        **more,
    }
    return run(WORKER, pool, PREFECT_API_URL="http://127.0.0.1:9/api", **variables)


def test_a_worker_says_its_host_in_its_name_as_the_doctor_expects() -> None:
    (name,) = re.findall(r'--name "([^"]+)"', WORKER.read_text(encoding="utf-8"))
    said = subprocess.run(
        ["bash", "-c", f'pool=gpu; echo "{name} $$"'], capture_output=True, text=True, check=True
    ).stdout.split()
    assert said[0] == worker_name("gpu", int(said[1]))


@SCRIPTS
def test_bash_can_read_it(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@SCRIPTS
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_slurm_and_the_image_can_execute_the_worker() -> None:
    assert os.access(WORKER, os.X_OK)


def test_a_pool_that_nothing_is_deployed_to_is_refused(source: Path, tmp_path: Path) -> None:
    done = start(source, tmp_path / "workspace", pool="cpu")
    assert done.returncode == 1
    assert "infra/worker.sh local" in done.stderr


@pytest.mark.parametrize("missing", ["PREFECT_API_URL", "MED_R1_REPOSITORY", "MED_R1_ROOT"])
def test_a_missing_setting_is_named_with_its_meaning(missing: str, tmp_path: Path) -> None:
    given = {
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "MED_R1_REPOSITORY": str(tmp_path),
        "MED_R1_ROOT": str(tmp_path / "workspace"),
    }
    done = run(WORKER, "gpu", **{key: value for key, value in given.items() if key != missing})
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {missing} is not set: ")


def test_two_workers_in_one_workspace_are_refused(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspaces" / "one"
    root.parent.mkdir()
    with (tmp_path / "workspaces" / "one.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = start(source, root)
    assert done.returncode == 1
    assert f"another worker has {root}" in done.stderr
    assert not root.exists()


def test_a_revision_that_is_not_there_is_refused(source: Path, tmp_path: Path) -> None:
    done = start(source, tmp_path / "workspace", revision="no-such-branch")
    assert done.returncode == 1
    assert "has no commit or branch no-such-branch" in done.stderr


def test_results_in_a_workspace_are_never_overwritten_by_another_revision(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "workspace"
    git(tmp_path, "clone", "--quiet", str(source), str(root))
    (root / "dvc.lock").write_text("what a worker has done\n", encoding="utf-8")
    done = start(source, root, revision="v1")
    assert done.returncode == 1
    assert f"{root} has changes that v1 would overwrite" in done.stderr
    assert (root / "dvc.lock").read_text(encoding="utf-8") == "what a worker has done\n"


def test_a_worker_clones_what_it_is_told_to_and_without_a_server_ends_with_an_error(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "workspaces" / "one"
    done = start(
        source,
        root,
        revision="v1",
        pool="local",
        PREFECT_HOME=str(tmp_path / "home"),
        DO_NOT_TRACK="1",
    )
    assert done.returncode != 0
    assert "connection" in (done.stdout + done.stderr).lower()
    assert git(root, "rev-parse", "HEAD") == git(source, "rev-parse", "v1")
    assert not Path(f"{root}.part").exists()


def test_a_worker_in_the_background_of_a_shell_can_be_interrupted(
    source: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    asked = (
        programs / "prefect"
    )  # in place of the worker: it says which signals it was started to ignore
    asked.write_text("#!/bin/sh\ngrep SigIgn /proc/$$/status\n", encoding="utf-8")
    asked.chmod(0o755)
    shell = tmp_path / "in-the-background.sh"
    shell.write_text(f'PATH="{programs}:$PATH"\nbash "{WORKER}" gpu &\nwait $!\n', encoding="utf-8")
    variables = {"MED_R1_REPOSITORY": str(source), "MED_R1_ROOT": str(tmp_path / "workspace")}
    done = run(shell, PREFECT_API_URL="http://127.0.0.1:9/api", **variables)
    ignored = int(done.stdout.split()[1], base=16)
    assert not ignored & 1 << (signal.SIGINT - 1)


@pytest.mark.parametrize("missing", sorted(set(SLURM) - {"SLURM_SUBMIT_DIR"}))
def test_slurm_tasks_do_not_begin_without_what_they_need(missing: str) -> None:
    done = run(SBATCH, **{key: value for key, value in SLURM.items() if key != missing})
    assert done.returncode != 0
    assert missing in done.stderr


def test_hosts_of_one_training_meet_and_the_first_alone_asks_dvc(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    said = {
        "scontrol": 'printf "host1\\nhost2\\n"',
        "dvc": 'echo "dvc $*"',
        "python": 'echo "python $* of $MED_R1_NODES at $MED_R1_RENDEZVOUS"',
        # in place of Slurm: the command on both hosts, one after the other
        "srun": (
            'while [[ $1 == --* ]]; do shift; done; for host in 0 1; do SLURM_NODEID=$host "$@";'
            " done"
        ),
    }
    for name, code in said.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{code}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / "bin").symlink_to(programs)
    job = {
        "SLURM_JOB_NODELIST": "host[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "MED_R1_VENV": str(venv),
    }
    job["PATH"] = f"{programs}:{os.environ['PATH']}"
    assert run(TRAIN, "ct", **job).stdout.splitlines() == [
        "dvc --wait-for-lock repro --single-item train@ct",
        "python -m stages.train ct of 2 at host1:29500",
    ]
    assert "which checkpoint?" in run(TRAIN, **job).stderr
    assert "SLURM_JOB_NODELIST" in run(TRAIN, "ct").stderr


def test_slurm_interrupts_workers_before_their_time_is_over() -> None:
    options = [
        line.removeprefix("#SBATCH ")
        for line in SBATCH.read_text(encoding="utf-8").splitlines()
        if line.startswith("#SBATCH ")
    ]
    assert {"--gres=gpu:1", "--ntasks=1", "--signal=B:TERM@180"} <= set(options)
    assert any(option.startswith("--array=") for option in options)

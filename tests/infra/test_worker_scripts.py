"""Worker start scripts with real git: refused settings, and one clone per worker."""

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
    """Start a worker without a reachable server."""
    variables = {
        "MED_R1_REPOSITORY": str(source),
        "MED_R1_ROOT": str(root),
        "MED_R1_REVISION": revision,
        **more,
    }
    return run(WORKER, pool, PREFECT_API_URL="http://127.0.0.1:9/api", **variables)


def test_a_worker_has_the_name_that_the_doctor_expects() -> None:
    (name,) = re.findall(r'--name "([^"]+)"', WORKER.read_text(encoding="utf-8"))
    command = ["bash", "-c", f'pool=gpu; echo "{name} $$"']
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    actual, pid = output.split()
    assert actual == worker_name("gpu", int(pid))


@SCRIPTS
def test_bash_can_parse_the_scripts(script: Path) -> None:
    process = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")


@SCRIPTS
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_reports_nothing(script: Path) -> None:
    process = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "")


def test_the_worker_script_is_executable() -> None:
    assert os.access(WORKER, os.X_OK)


def test_an_unknown_pool_is_refused(source: Path, tmp_path: Path) -> None:
    process = start(source, tmp_path / "workspace", pool="cpu")
    assert process.returncode == 1
    assert "'cpu'" in process.stderr
    assert "infra/worker.sh local" in process.stderr


@pytest.mark.parametrize("missing", ["PREFECT_API_URL", "MED_R1_REPOSITORY", "MED_R1_ROOT"])
def test_a_missing_setting_is_named(missing: str, tmp_path: Path) -> None:
    variables = {
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "MED_R1_REPOSITORY": str(tmp_path),
        "MED_R1_ROOT": str(tmp_path / "workspace"),
    }
    del variables[missing]
    process = run(WORKER, "gpu", **variables)
    assert process.returncode == 1
    assert process.stderr.startswith(f"error: {missing} is not set: ")


def test_two_workers_in_one_workspace_are_refused(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "workspaces" / "one"
    root.parent.mkdir()
    with (tmp_path / "workspaces" / "one.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(source, root)
    assert process.returncode == 1
    assert f"another worker uses {root}" in process.stderr
    assert not root.exists()


def test_a_missing_revision_is_refused(source: Path, tmp_path: Path) -> None:
    process = start(source, tmp_path / "workspace", revision="no-such-branch")
    assert process.returncode == 1
    assert "has no commit or branch no-such-branch" in process.stderr


def test_results_in_a_workspace_are_never_overwritten_by_another_revision(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "workspace"
    git(tmp_path, "clone", "--quiet", str(source), str(root))
    (root / "dvc.lock").write_text("results of a worker\n", encoding="utf-8")
    process = start(source, root, revision="v1")
    assert process.returncode == 1
    assert f"{root} has changes that v1 would overwrite" in process.stderr
    assert (root / "dvc.lock").read_text(encoding="utf-8") == "results of a worker\n"


def test_a_worker_clones_the_revision_and_fails_without_a_server(
    source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "workspaces" / "one"
    process = start(
        source,
        root,
        revision="v1",
        pool="local",
        PREFECT_HOME=str(tmp_path / "home"),
        DO_NOT_TRACK="1",
    )
    assert process.returncode != 0
    assert "connection" in (process.stdout + process.stderr).lower()
    assert git(root, "rev-parse", "HEAD") == git(source, "rev-parse", "v1")
    assert not Path(f"{root}.part").exists()


def test_a_worker_in_the_background_of_a_shell_can_be_interrupted(
    source: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    # instead of the worker, print the signals that it would ignore
    prefect = programs / "prefect"
    prefect.write_text("#!/bin/sh\ngrep SigIgn /proc/$$/status\n", encoding="utf-8")
    prefect.chmod(0o755)
    shell = tmp_path / "in-the-background.sh"
    shell.write_text(f'PATH="{programs}:$PATH"\nbash "{WORKER}" gpu &\nwait $!\n', encoding="utf-8")
    variables = {"MED_R1_REPOSITORY": str(source), "MED_R1_ROOT": str(tmp_path / "workspace")}
    process = run(shell, PREFECT_API_URL="http://127.0.0.1:9/api", **variables)
    ignored = int(process.stdout.split()[1], base=16)
    assert not ignored & 1 << (signal.SIGINT - 1)


@pytest.mark.parametrize("missing", sorted(set(SLURM) - {"SLURM_SUBMIT_DIR"}))
def test_slurm_tasks_fail_without_a_required_variable(missing: str) -> None:
    process = run(SBATCH, **{key: value for key, value in SLURM.items() if key != missing})
    assert process.returncode != 0
    assert missing in process.stderr


def test_hosts_of_a_training_share_a_rendezvous_and_only_the_first_runs_dvc(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    scripts = {
        "scontrol": 'printf "host1\\nhost2\\n"',
        "dvc": 'echo "dvc $*"',
        "python": 'echo "python $* of $MED_R1_NODES at $MED_R1_RENDEZVOUS"',
        # instead of Slurm, run the command as both hosts, one after the other
        "srun": (
            'while [[ $1 == --* ]]; do shift; done; for host in 0 1; do SLURM_NODEID=$host "$@";'
            " done"
        ),
    }
    for name, code in scripts.items():
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
    assert "the checkpoint is missing" in run(TRAIN, **job).stderr
    assert "SLURM_JOB_NODELIST" in run(TRAIN, "ct").stderr


def test_slurm_terminates_workers_before_their_time_limit() -> None:
    options = [
        line.removeprefix("#SBATCH ")
        for line in SBATCH.read_text(encoding="utf-8").splitlines()
        if line.startswith("#SBATCH ")
    ]
    assert {"--gres=gpu:1", "--ntasks=1", "--signal=B:TERM@180"} <= set(options)
    assert any(option.startswith("--array=") for option in options)

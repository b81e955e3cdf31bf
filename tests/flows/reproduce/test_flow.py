"""The flow on a real Prefect API gives the results of `dvc repro`, whatever fails or is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort

from flows.dvc_api.processes import find_orphans, guarded_processes
from flows.prefect_api.client import orphaned_servers
from flows.reproduce.flow import _crashed, reproduce, workspace_lock
from flows.scheduling.schedule import StagesFailedError
from stages.core.errors import ExitCode, InputError
from tests.commands import MED_R1, med_r1
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import ENVIRONMENT, REPOSITORY, eventually, locked, make_workspace, run

pytestmark = pytest.mark.usefixtures("prefect_api")
KEYS = ("a", "b")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace with few stages."""
    return make_workspace(tmp_path / "workspace", KEYS)


@pytest.fixture
def reference(run_by_dvc: RunByDvc) -> dict[str, dict[str, str]]:
    """Outputs of plain `dvc repro` in it."""
    return locked(run_by_dvc(KEYS))


def states(*names: str) -> dict[str, tuple[str, str]]:
    """Task -> name and message of its state in the latest flow run, once all `names` have ended."""
    deadline = time.monotonic() + 60
    while True:
        with get_client(sync_client=True) as client:
            latest = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=[latest.id]))
            runs = {
                each.name: each.state
                for each in client.read_task_runs(flow_run_filter=wanted)
                if each.state
            }
        if (
            all(name in runs and runs[name].is_final() for name in names)
            or time.monotonic() > deadline
        ):
            return {name: (str(state.name), str(state.message)) for name, state in runs.items()}
        time.sleep(0.2)


def test_results_equal_those_of_plain_dvc_and_a_second_run_does_nothing(
    tmp_path: Path, run_by_dvc: RunByDvc
) -> None:
    # more trainings than slots
    root = make_workspace(tmp_path / "workspace", ("a", "b", "c"))
    reference = locked(run_by_dvc(("a", "b", "c")))
    summary = reproduce(root=str(root), slots=2)
    assert summary.clean
    assert {result.name: result.state for result in summary.results} == dict.fromkeys(
        reference, "ran"
    )
    assert locked(root) == reference
    assert run("dvc", "repro", cwd=root).strip().endswith("Data and pipelines are up to date.")
    again = reproduce(root=str(root))
    assert (again.results, again.clean) == ((), True)


def test_stages_that_share_a_gpu_run_at_once_with_the_same_results(
    root: Path,
    reference: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "host").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "host"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    for key in ("a", "b"):
        (root / "hold" / key).touch()
    seen = [root / f"seen-models-{key}.log" for key in ("a", "b")]

    def release() -> None:
        # both are released only once both run
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not all(path.exists() for path in seen):
            time.sleep(0.05)
        both.append(all(path.exists() for path in seen))
        for key in ("a", "b"):
            (root / "hold" / key).unlink()

    both: list[bool] = []
    releasing = threading.Thread(target=release)
    releasing.start()
    summary = reproduce(root=str(root), slots_per_gpu=2)
    releasing.join()
    assert both == [True]
    assert summary.clean
    assert locked(root) == reference
    assert seen[0].read_text().splitlines() == ["GPUs '3' shared by 2"]
    assert reproduce(root=str(root), slots_per_gpu=3).results == (), "nothing is stale"
    with pytest.raises(InputError, match="5 slots per GPU"):
        reproduce(root=str(root), slots_per_gpu=5)


def test_a_failed_stage_skips_only_the_stages_that_need_it(
    root: Path, reference: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "fail" / "b").touch()
    with pytest.raises(StagesFailedError) as failed:
        reproduce(root=str(root), slots=2)
    assert "train@b failed: b has no luck" in str(failed.value)
    assert "Not run because of that: evaluate@b, report" in str(failed.value)
    assert set(locked(root)) == set(reference) - {"train@b", "evaluate@b", "report"}
    tasks = states("train@b", "evaluate@b", "report")
    assert tasks["evaluate@b"] == ("Skipped", "not run, because train@b failed")
    assert tasks["train@b"] == ("Failed", "train@b failed: b has no luck")
    assert tasks["train@a"][0] == "Ran"
    (root / "fail" / "b").unlink()
    assert {result.name for result in reproduce(root=str(root)).results} == {
        "train@b",
        "evaluate@b",
        "report",
    }
    assert locked(root) == reference


def test_skipped_stages_are_recorded_even_if_the_flow_ends_at_once(root: Path) -> None:
    for key in KEYS:
        (root / "fail" / key).touch()
    with pytest.raises(StagesFailedError, match="2 of 6 stages failed"):
        reproduce(root=str(root), slots=2)
    names = ("evaluate@a", "evaluate@b", "report")
    tasks = states(*names)
    assert {name: tasks[name][0] for name in names} == dict.fromkeys(names, "Skipped")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        pytest.skip(f"no file system can be mounted here: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_while_recording_results_is_named_and_loses_nothing(
    small_disk: Path,
) -> None:
    root = make_workspace(small_disk / "workspace", keys=("a",))
    with (root / "work.sh").open("a", encoding="utf-8") as script:
        script.write('[ "$1" = predictions ] || head -c 5000000 /dev/zero >> "$1/$2.txt"\n')
    # too little space for the copy of the model in DVC's cache
    (small_disk / "ballast").write_bytes(bytes(8_000_000))
    with pytest.raises(StagesFailedError, match=r"train@a failed: the disk is full"):
        reproduce(root=str(root), slots=1)
    assert "train@a" not in locked(root)
    (small_disk / "ballast").unlink()
    assert reproduce(root=str(root), slots=1).clean
    assert (root / "models" / "a.txt").stat().st_size > 5_000_000
    assert run("dvc", "repro", cwd=root).strip().endswith("Data and pipelines are up to date.")


def test_only_the_selected_stages_and_their_dependencies_are_run(root: Path) -> None:
    summary = reproduce(only=["evaluate@a"], root=str(root))
    assert [result.name for result in summary.results] == ["split", "train@a", "evaluate@a"]
    assert summary.clean
    with pytest.raises(InputError, match="'train@z'; there are: train@a, train@b"):
        reproduce(only=["train@z"], root=str(root))


def test_a_second_flow_in_a_workspace_is_refused(root: Path) -> None:
    with (
        workspace_lock(root),
        pytest.raises(InputError, match=rf"process {os.getpid()}\b"),
    ):
        reproduce(root=str(root))


@contextmanager
def flow_in_stage_a(root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`med-r1 reproduce` in a process of its own, while stage a waits to be released."""
    (root / "hold" / "a").touch()
    flow = subprocess.Popen(
        [*MED_R1, "reproduce", "--slots", "2"],
        cwd=root,
        env=ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert eventually((root / "seen-models-a.log").exists), "the stage never started"
        yield flow
    finally:
        flow.kill()


def stage_processes(root: Path) -> list[Any]:
    return [process for process, record in guarded_processes() if record.startswith(str(root))]


def test_a_terminated_flow_ends_its_stages_and_its_temporary_server(root: Path) -> None:
    with flow_in_stage_a(root) as flow:
        children = psutil.Process(flow.pid).children(recursive=True)
        (server,) = (each for each in children if "prefect.server" in " ".join(each.cmdline()))
        flow.send_signal(signal.SIGTERM)
        assert flow.wait(timeout=180) == 128 + signal.SIGTERM
    assert not stage_processes(root)
    assert eventually(lambda: not server.is_running())


def test_a_killed_flow_leaves_no_process_and_a_re_run_completes_its_results(
    root: Path, reference: dict[str, Any]
) -> None:
    with flow_in_stage_a(root) as flow:
        assert stage_processes(root)
        flow.send_signal(signal.SIGKILL)
        flow.wait()
    assert eventually(lambda: not stage_processes(root))
    assert not find_orphans(root)
    (server,) = orphaned_servers()
    (root / "hold" / "a").unlink()
    run(*MED_R1, "reproduce", "--slots", "2", cwd=root, more={"PYTHONPATH": str(REPOSITORY)})
    assert locked(root) == reference
    assert not server.is_running()
    assert not orphaned_servers()


def test_the_command_line_prints_the_outcome(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert med_r1("reproduce", "--only", "nothing") == ExitCode.INPUT
    assert "'nothing'" in capsys.readouterr().err
    assert med_r1("reproduce", "--only", "split") == 0
    assert "1 ran" in capsys.readouterr().out
    shutil.rmtree(root / "parts")
    (root / "dvc.yaml").write_text("stages: [", encoding="utf-8")
    assert med_r1("reproduce") == ExitCode.INPUT
    assert "error: DVC cannot read the pipeline" in capsys.readouterr().err


def test_an_unreachable_server_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert med_r1("reproduce") == ExitCode.INPUT
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9/api (PREFECT_API_URL)" in error
    assert "make dashboard" in error


def test_a_task_with_an_unreadable_state_counts_as_failed() -> None:
    class Unreachable:
        @property
        def state(self) -> Any:
            raise httpx.ConnectError("refused")

    result = _crashed("train@a", Unreachable())  # type: ignore[arg-type]
    assert result.state == "failed"
    assert "train@a" in result.message
    assert "ConnectError: refused" in result.message

"""Flows on CPUs serve preloaded libraries to their stages, and to nobody once they end."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from flows.doctor import leftovers
from flows.doctor.processes import command_words
from flows.dvc_api.preloading import LOG, SERVER, preloaded_libraries
from flows.prefect_api.environment import ADDRESS
from flows.reproduce.flow import reproduce
from flows.scheduling.schedule import StagesFailedError
from flows.scheduling.slots import find_slots
from stages.core.distributed.handover import PRELOADED
from stages.core.yaml_files import dump_yaml, read_yaml
from tests.commands import MED_R1
from tests.flows.tiny import ENVIRONMENT, REPOSITORY, locked, make_workspace, run

TRAIN = """
import os, sys, time
from pathlib import Path
from stages.core.cli import run_stage
def main():
    key = sys.argv[1]
    print(f"{key}: step 1 of 2, reward 0.50, 1 s to go", flush=True)
    Path(f"seen-{key}.log").write_text(f"{'torch' in sys.modules} {os.getpid()}")
    while Path("hold", key).exists():
        time.sleep(0.05)
    if Path("fail", key).exists():
        raise KeyError("a bug")
    Path("models").mkdir(exist_ok=True)
    Path("models", f"{key}.txt").write_bytes(Path("parts", f"{key}.txt").read_bytes())
run_stage(main)
"""


pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace whose trainings are modules, as the project's, in a checkout of their own."""
    root = make_workspace(tmp_path / "workspace", ("a", "b"))
    (root / "stages").mkdir()
    for path in (REPOSITORY / "stages").iterdir():
        (root / "stages" / path.name).symlink_to(path)
    (root / "stages" / "train.py").unlink()
    (root / "stages" / "train.py").write_text(TRAIN, encoding="utf-8")
    tree = read_yaml(root / "dvc.yaml")
    tree["stages"]["train"]["do"]["cmd"] = "python -m stages.train ${item}"
    (root / "dvc.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    return root


def seen(root: Path) -> dict[str, str]:
    """Training -> whether torch was there before it imported anything."""
    files = sorted(root.glob("seen-?.log"))
    return {path.stem: path.read_text(encoding="utf-8").split()[0] for path in files}


def servers(root: Path) -> list[psutil.Process]:
    """The workspace's servers, supervisors and workers."""
    found = []
    for process in psutil.process_iter():
        try:
            command = command_words(process)
            ours = {SERVER, "stages.train", "supervisor"} & set(command)
            if ours and process.cwd() == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_all_trainings_of_a_flow_find_their_libraries_and_give_the_same_results(
    root: Path,
) -> None:
    (root / "fail" / "b").touch()
    with pytest.raises(StagesFailedError, match="train@b failed: KeyError: 'a bug'"):
        reproduce(root=str(root), slots=2)
    (root / "fail" / "b").unlink()
    assert seen(root) == dict.fromkeys(("seen-a", "seen-b"), "True")
    assert "other variables" not in (root / LOG).read_text(encoding="utf-8")
    assert not servers(root)
    summary = reproduce(root=str(root), slots=2)
    assert {result.name for result in summary.results} == {"train@b", "evaluate@b", "report"}
    assert seen(root)["seen-b"] == "False", "two stages are too few"
    flows_results = locked(root)
    run("dvc", "repro", "--force", cwd=root)
    assert locked(root) == flows_results
    assert set(seen(root).values()) == {"False"}


def test_a_killed_flow_leaves_neither_server_nor_worker(root: Path, prefect_api: str) -> None:
    (root / "hold" / "a").touch()
    flow = subprocess.Popen(
        [*MED_R1, "reproduce", "--slots", "1"],
        cwd=root,
        env=ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY), ADDRESS: prefect_api},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while not (root / "seen-a.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    preloaded, pid = (root / "seen-a.log").read_text(encoding="utf-8").split()
    worker = psutil.Process(int(pid))
    assert preloaded == "True"
    assert command_words(worker)[1:] == ["-m", "stages.train", "a"], "as doctor names it"
    writers = leftovers._writers(root)
    assert worker in writers
    assert not [each for each in writers if SERVER in command_words(each)], (
        "a server writes nothing"
    )
    assert any(SERVER in command_words(each) for each in servers(root))
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    while servers(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not servers(root)
    assert not worker.is_running()


STAGES = ["train@a", "train@b", "evaluate@c"]


def test_where_libraries_are_not_worth_preloading_no_server_is_started(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with preloaded_libraries(root, [*STAGES[:2], "report", "resize@ct"], {}) as variables:
        assert variables == {}, "too few"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert find_slots(root).cpu_environment is None
    assert find_slots(root, gpus=[]).cpu_environment is None, "stages would see the GPU"
    with preloaded_libraries(root, STAGES, None) as variables:
        assert variables == {}, "GPUs"
    (root / "stages" / "core").unlink()
    with preloaded_libraries(root, STAGES, {}) as variables:
        assert variables == {}, "code of before there were servers"
    assert not (root / LOG).exists()


def test_a_flow_that_ends_during_the_imports_does_not_wait_for_them(root: Path) -> None:
    with preloaded_libraries(root, STAGES, {"OMP_WAIT_POLICY": "PASSIVE"}) as variables:
        socket = Path(variables[PRELOADED])
        (server,) = servers(root)
        assert server.environ()["OMP_WAIT_POLICY"] == "PASSIVE"
        assert socket.parent.stat().st_mode & 0o777 == 0o700
    assert not servers(root)
    assert not socket.parent.exists()

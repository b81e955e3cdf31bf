"""A flow that is started by hand does not depend on the user's own Prefect, and tells nobody."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from flows.prefect_api import environment
from flows.prefect_api.environment import ADDRESS, MAX_PATIENCE_S, PATIENCE_S, use_own_prefect
from stages.core.errors import InputError
from tests.commands import MED_R1
from tests.flows.tiny import REPOSITORY, make_workspace, run

DEAD_SERVER = """
active = "work"
[profiles.work]
PREFECT_API_URL = "http://127.0.0.1:9/api"
PREFECT_SERVER_ANALYTICS_ENABLED = "true"
"""


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PREFECT"):
            monkeypatch.delenv(name)
    for name in ("DO_NOT_TRACK", "DVC_NO_ANALYTICS"):
        monkeypatch.delenv(name, raising=False)
    # undone after the test, whatever it sets
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.usefixtures("clean")
def test_without_a_server_home_database_and_profiles_are_the_workspaces(tmp_path: Path) -> None:
    use_own_prefect(tmp_path)
    home = tmp_path / ".scratch" / "prefect"
    assert os.environ["PREFECT_HOME"] == str(home)
    assert os.environ["PREFECT_PROFILES_PATH"].startswith(str(home))
    assert str(home) in os.environ["PREFECT_API_DATABASE_CONNECTION_URL"]
    assert os.environ["DO_NOT_TRACK"] == os.environ["DVC_NO_ANALYTICS"] == "1"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


@pytest.mark.usefixtures("clean")
def test_what_is_set_explicitly_stays(tmp_path: Path) -> None:
    os.environ |= {ADDRESS: "http://127.0.0.1:4200/api", "PREFECT_HOME": str(tmp_path / "own")}
    use_own_prefect(tmp_path)
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "own")
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in os.environ


@pytest.mark.usefixtures("clean")
def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.environ["PREFECT_HOME"] = str(tmp_path / "file" / "home")
    with pytest.raises(InputError, match="file/home cannot be written .*: set PREFECT_HOME"):
        use_own_prefect(tmp_path)


@pytest.mark.parametrize(
    ("load", "seconds"), [(0.0, PATIENCE_S), (2.0, PATIENCE_S), (6.0, 360), (900.0, MAX_PATIENCE_S)]
)
def test_patience_grows_with_the_load(
    load: float, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(environment, "available_cores", lambda: 2)
    assert environment.startup_seconds() == seconds


def test_a_profile_of_a_dead_server_and_a_newer_database_disturb_no_flow(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    prefect = tmp_path / "home" / ".prefect"
    prefect.mkdir(parents=True)
    (prefect / "profiles.toml").write_text(DEAD_SERVER, encoding="utf-8")
    with sqlite3.connect(prefect / "prefect.db") as database:
        database.execute("create table alembic_version (version_num varchar(32) not null)")
        database.execute("insert into alembic_version values ('ffffffffffff')")
    before = {path: path.read_bytes() for path in prefect.iterdir()}
    variables = {"PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path / "home")}
    output = run(*MED_R1, "reproduce", "--only", "train@a", cwd=root, more=variables)
    assert "train@a" in output
    assert len(output.splitlines()) < 60, output
    assert {path: path.read_bytes() for path in prefect.iterdir()} == before

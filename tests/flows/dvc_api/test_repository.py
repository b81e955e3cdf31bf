"""DVC's settings and stale stages are those that its command line prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.dvc_api.client import read_status
from flows.dvc_api.repository import cache_folder, open_repository, read_config, write_config
from stages.core.errors import InputError
from tests.flows.conftest import RunByDvc
from tests.flows.tiny import copy_folder, init_repository, run

CACHE = "[cache]\ndir = {}\n"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's own DVC configuration."""
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tmp_path / "user"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "user").mkdir()
    return tmp_path / "user"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "workspace"
    root.mkdir()
    init_repository(root)
    return root


@pytest.mark.parametrize(
    ("of_user", "shared", "local"),
    [
        ("", "", ""),
        ("", CACHE.format("../../cache"), ""),
        ("", CACHE.format("../../cache"), CACHE.format("/elsewhere/cache")),
        (CACHE.format("/of/user"), "", ""),
        (CACHE.format("/of/user"), CACHE.format("~/cache"), ""),
        (CACHE.format("/of/user"), "[cache]\ntype = copy\n", "[core]\nremote = far\n"),
    ],
)
def test_the_cache_is_where_dvc_has_it(
    of_user: str, shared: str, local: str, user: Path, root: Path
) -> None:
    (user / "config").write_text(of_user, encoding="utf-8")
    (root / ".dvc" / "config").write_text(shared, encoding="utf-8")
    (root / ".dvc" / "config.local").write_text(local, encoding="utf-8")
    variables = {"DVC_GLOBAL_CONFIG_DIR": str(user), "HOME": str(user.parent / "home")}
    printed = run("dvc", "cache", "dir", cwd=root, more=variables).strip()
    assert cache_folder(root) == root / printed


def test_settings_written_to_another_workspace_are_those_that_dvc_lists(
    user: Path, root: Path, tmp_path: Path
) -> None:
    (user / "config").write_text("[core]\nautostage = true\n", encoding="utf-8")
    (root / ".dvc" / "config").write_text(
        "[core]\nremote = near\n['remote \"near\"']\nurl = ../../remote\n"
        "['remote \"far\"']\nurl = s3://bucket/folder\nendpointurl = http://127.0.0.1:9\n",
        encoding="utf-8",
    )
    (root / ".dvc" / "config.local").write_text(
        '[core]\nremote = far\n[\'remote "far"\']\nsecret_access_key = """a#b,c\'d"e"""\n',
        encoding="utf-8",
    )
    other = tmp_path / "deep" / "below" / "other"
    other.mkdir(parents=True)
    write_config(other, read_config(root))
    variables = {"DVC_GLOBAL_CONFIG_DIR": str(user)}
    listed, written = (
        dict(
            line.split("=", 1)
            for line in run("dvc", "config", "--list", cwd=folder, more=variables).splitlines()
        )
        for folder in (root, other)
    )
    assert listed["core.remote"] == "far"
    assert listed["remote.near.url"] == str(tmp_path / "remote")
    assert written == listed


@pytest.mark.parametrize("text", ["[core\n", "[core]\nremote = a\nremote = b\n"])
def test_a_configuration_that_dvc_cannot_read_is_an_error_of_the_user(
    root: Path, text: str
) -> None:
    (root / ".dvc" / "config").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=str(root)):
        cache_folder(root)
    with pytest.raises(InputError, match=str(root)):
        read_config(root)


def test_a_folder_without_dvc_is_named(tmp_path: Path) -> None:
    for question in (cache_folder, read_config, read_status):
        with pytest.raises(InputError, match=str(tmp_path)):
            question(tmp_path)


def test_stale_stages_are_those_of_dvc_status_from_any_working_directory(
    run_by_dvc: RunByDvc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_folder(run_by_dvc(("a", "b")), tmp_path / "workspace")
    (root / "params.yaml").write_text("rate: 2\n", encoding="utf-8")
    (root / "models" / "a.txt").unlink()
    (root / "predictions" / "b.txt").unlink()
    (root / "predictions" / "b.txt").write_text("by hand", encoding="utf-8")
    (root / "corpus.txt").unlink()
    monkeypatch.chdir(tmp_path)
    status = {}
    for name, reasons in json.loads(run("dvc", "status", "--json", cwd=root)).items():
        status[name] = {kind: each for reason in reasons for kind, each in reason.items()}
    assert status.keys() == {"split", "train@a", "train@b", "evaluate@a", "evaluate@b", "report"}
    assert read_status(root) == status
    assert Path.cwd() == tmp_path
    assert run("dvc", "status", cwd=root), "no lock remains"


def test_the_working_directory_is_restored_after_an_error(root: Path, tmp_path: Path) -> None:
    before = Path.cwd()
    with pytest.raises(ZeroDivisionError), open_repository(root):
        assert Path.cwd() == root
        raise ZeroDivisionError
    assert Path.cwd() == before

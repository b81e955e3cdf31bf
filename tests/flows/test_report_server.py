"""The link to the report leads to the report, or to a page that says how to make it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from flows.report_server import make_server
from stages.core.yaml_files import read_yaml
from tests.conftest import ROOT


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    server = make_server(tmp_path, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("path", ["/", "/index.html", "/index.html?from=dashboard"])
def test_before_the_first_run_a_page_says_what_to_do(address: str, path: str) -> None:
    reply = httpx.get(address + path, trust_env=False)
    assert reply.status_code == httpx.codes.NOT_FOUND
    assert "make repro" in reply.text
    assert "reproduce/whole-pipeline" in reply.text


@pytest.mark.parametrize("path", ["/other.html", "/figures/", "/../params.yaml"])
def test_other_missing_files_and_folders_are_not_found(
    address: str, path: str, tmp_path: Path
) -> None:
    (tmp_path / "figures").mkdir()
    reply = httpx.get(address + path, trust_env=False)
    assert reply.status_code == httpx.codes.NOT_FOUND
    assert "make repro" not in reply.text


@pytest.mark.parametrize("path", ["/", "/index.html"])
def test_a_report_is_served_as_soon_as_it_is_there(address: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("the report", encoding="utf-8")
    assert httpx.get(address + path, trust_env=False).text == "the report"


def test_deployments_are_named_by_what_they_do() -> None:
    deployments = read_yaml(ROOT / "infra" / "prefect.yaml")["deployments"]
    names = [each["name"] for each in deployments]
    assert len(set(names)) == len(names)
    pools = {each["work_pool"]["name"] for each in deployments}
    assert not set(names[:2]) & pools

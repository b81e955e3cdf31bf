"""Whether a Prefect server responds: proxies, passwords, and other servers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows.prefect_api.client import CLIENT_PASSWORD, is_loopback, server_responds
from flows.prefect_api.environment import ADDRESS
from stages.core.errors import InputError

CREDENTIALS = "Basic c29tZWJvZHk6c2U6Y3JldA=="
"""somebody:se:cret"""


class Api(BaseHTTPRequestHandler):
    """Servers at /api (needs the credentials), /open (needs none), /broken and /forbidden."""

    def do_GET(self) -> None:
        codes = {
            "/open/admin/version": 200,
            "/broken/admin/version": 500,
            "/forbidden/admin/version": 403,
        }
        allowed = self.headers.get("Authorization") == CREDENTIALS
        guarded = 200 if allowed else 401
        self.send_response(
            guarded if self.path == "/api/admin/version" else codes.get(self.path, 404)
        )
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Api) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_responding_server_is_distinguished_from_others(address: str) -> None:
    assert server_responds({ADDRESS: f"{address}/open/"})
    assert not server_responds({ADDRESS: f"{address}/broken"})
    assert not server_responds({ADDRESS: f"{address}/elsewhere"})
    assert not server_responds({ADDRESS: "http://127.0.0.1:1/api"})


@pytest.mark.parametrize(
    "wrong", ["", "no address", "http://127.0.0.1:port/api", "ftp://127.0.0.1/api", "http://["]
)
def test_an_invalid_address_does_not_respond(wrong: str) -> None:
    assert not server_responds({ADDRESS: wrong})


def test_the_password_is_sent_and_a_refusal_is_an_input_error(address: str) -> None:
    assert server_responds({ADDRESS: f"{address}/api", CLIENT_PASSWORD: "somebody:se:cret"})
    for variables in (
        {ADDRESS: f"{address}/api"},
        {ADDRESS: f"{address}/api", CLIENT_PASSWORD: "somebody:else"},
    ):
        with pytest.raises(InputError, match=CLIENT_PASSWORD):
            server_responds(variables)
    with pytest.raises(InputError, match=CLIENT_PASSWORD):
        server_responds({ADDRESS: f"{address}/forbidden"})


def test_a_loopback_address_is_reached_without_a_proxy(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert server_responds({ADDRESS: f"{address}/open"})


def test_other_addresses_are_reached_through_the_proxy(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", address)
    # a proxy gets the whole URL as the path, for which this server returns 404
    assert not server_responds({ADDRESS: "http://prefect.invalid/api"})
    monkeypatch.setattr(Api, "do_GET", lambda self: (self.send_response(200), self.end_headers()))
    assert server_responds({ADDRESS: "http://prefect.invalid/api"})


def test_loopback_addresses_are_recognised() -> None:
    assert [
        is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "prefect")
    ] == [True] * 3 + [False] * 2

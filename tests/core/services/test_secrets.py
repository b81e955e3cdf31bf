"""Secrets of the environment are found in published files and masked in messages."""

from __future__ import annotations

import json
import os

import pytest

from stages.core.services.hub import format_error
from stages.core.services.secrets import find_leaked_secret, masked

VALUE = 'p\u00e4ss"word\\with more'


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_KEY",
        "PGPASSWORD",
        "DB_PASS",
        "BASIC_AUTH",
        "GOOGLE_CREDENTIALS_JSON",
        "OPENAI_APIKEY",
        "lower_token",
    ],
)
def test_a_variable_that_is_called_a_secret_is_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, name, VALUE)
    for content in (VALUE, json.dumps({"a": VALUE}), json.dumps({"a": VALUE}, ensure_ascii=False)):
        assert find_leaked_secret(f"before {content} behind".encode()) == name
    assert masked(f"at {VALUE}: refused") == "at ***: refused"


def test_what_is_short_or_a_path_or_called_something_else_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = {
        "HF_TOKEN": "none",
        "SSH_AUTH_SOCK": "/run/user/agent.socket",
        "KEYBOARD": "a-long-enough-value",
    }
    monkeypatch.setattr(os, "environ", environment)
    for value in environment.values():
        assert find_leaked_secret(value.encode()) is None
        assert masked(value) == value


def test_of_two_the_longer_is_taken_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "environ", {"A_TOKEN": "0123456789ab", "B_TOKEN": "0123456789ab-and-more"}
    )
    assert masked("with 0123456789ab-and-more") == "with ***"


def test_a_message_is_cut_only_when_nothing_secret_is_left_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {"HF_TOKEN": "hf_0123456789abcdef"})
    message = format_error(ValueError("x" * 290 + " hf_0123456789abcdef"))
    assert "hf_" not in message
    assert len(message) <= 300

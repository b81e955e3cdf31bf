"""Texts of question files: accepted encodings, and characters unsafe in prompts or names."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.texts import (
    MAX_TEXT_LENGTH,
    RefusedRecord,
    decode,
    find_name_problem,
    find_text_problem,
    is_plain,
    is_unicode,
)
from tests.conftest import ROOT


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_utf_8_with_and_without_byte_order_mark_and_utf_16_are_decoded(encoding: str) -> None:
    assert decode("Größe 日本 \U0001f600".encode(encoding)) == "Größe 日本 \U0001f600"
    assert decode("Größe".encode("utf-16-be").join([b"\xfe\xff", b""])) == "Größe"


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(content: bytes) -> None:
    with suppress(RefusedRecord):
        assert is_unicode(decode(content))


@pytest.mark.parametrize(
    ("text", "reason", "character"),
    [
        ("bell\x07", Reason.FIELD_TEXT, "U+0007"),
        ("escape \x1b[31m", Reason.FIELD_TEXT, "U+001B"),
        ("delete\x7f", Reason.FIELD_TEXT, "U+007F"),
        ("cp1252 as latin-1: \x93", Reason.FIELD_TEXT, "U+0093"),
        ("back\rto the start", Reason.FIELD_TEXT, "U+000D"),
        ("\u202egnp.exe", Reason.FIELD_TEXT, "U+202E"),
        ("\u2066x\u2069", Reason.FIELD_TEXT, "U+2066"),
        ("no\u200bthing", Reason.FIELD_TEXT, "U+200B"),
        ("\ufeffmark", Reason.FIELD_TEXT, "U+FEFF"),
        ("tag \U000e0041", Reason.FIELD_TEXT, "U+E0041"),
        ("half \udc80", Reason.FIELD_ENCODING, ""),
        ("<|vision_start|>", Reason.FIELD_TOKEN, "<|vision_start|>"),
        ("a <answer> B </answer>", Reason.FIELD_TOKEN, "<answer>"),
        ("</THINK>", Reason.FIELD_TOKEN, "</THINK>"),
        ("x" * (MAX_TEXT_LENGTH + 1), Reason.FIELD_LENGTH, str(MAX_TEXT_LENGTH + 1)),
    ],
)
def test_an_unsafe_character_or_token_is_named(text: str, reason: Reason, character: str) -> None:
    problem = find_text_problem(text)
    assert problem is not None
    assert problem == find_name_problem(text)
    assert problem.reason == reason
    assert character in problem.why


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two\nlines",
        "two\r\nlines",
        "a\ttab",
        "p < 0.05 and > 3",
        "<|",
        "no-break\u00a0space",
        "عَرَبِي \u200f",
        "می\u200cخواهم",
        "x" * MAX_TEXT_LENGTH,
    ],
)
def test_ordinary_text_has_no_problem(text: str) -> None:
    assert find_text_problem(text) is None


@pytest.mark.parametrize("text", ["two\nlines", "a\ttab", "line\u2028separator"])
def test_a_name_must_be_a_single_line(text: str) -> None:
    assert find_text_problem(text) is None
    problem = find_name_problem(text)
    assert problem is not None
    assert problem.reason == Reason.FIELD_TEXT


def test_every_special_token_of_the_embedded_base_is_refused() -> None:
    tokenizer = json.loads((ROOT / "infra/base/tokenizer.json").read_text(encoding="utf-8"))
    tokens = [token["content"] for token in tokenizer["added_tokens"]]
    assert tokens
    assert [token for token in tokens if not find_text_problem(f"What is {token}?")] == []


@given(st.lists(st.text(max_size=8), max_size=4))
def test_the_parts_of_a_plain_text_have_no_problem(parts: list[str]) -> None:
    if is_plain(" ".join(parts)):
        assert not any(find_text_problem(part) or find_name_problem(part) for part in parts)

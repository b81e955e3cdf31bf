"""Texts of question files: accepted encodings, and characters unsafe in prompts or names."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus.quarantine.reasons import Reason
from stages.corpus.records.texts import (
    LONGEST,
    RefusedRecord,
    decode,
    is_plain,
    is_unicode,
    unfit,
    unfit_name,
)
from tests.conftest import ROOT


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_utf_8_with_and_without_a_mark_and_utf_16_are_read(encoding: str) -> None:
    assert decode("Größe 日本 \U0001f600".encode(encoding)) == "Größe 日本 \U0001f600"
    assert decode("Größe".encode("utf-16-be").join([b"\xfe\xff", b""])) == "Größe"


@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_refused(content: bytes) -> None:
    with suppress(RefusedRecord):
        assert is_unicode(decode(content))


@pytest.mark.parametrize(
    ("text", "reason", "named"),
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
        ("x" * (LONGEST + 1), Reason.FIELD_LENGTH, str(LONGEST + 1)),
    ],
)
def test_what_is_not_read_as_it_is_written_is_named(text: str, reason: Reason, named: str) -> None:
    found = unfit(text)
    assert found is not None
    assert found == unfit_name(text)
    assert found.reason == reason
    assert named in found.why


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
        "x" * LONGEST,
    ],
)
def test_what_people_write_is_fit(text: str) -> None:
    assert unfit(text) is None


@pytest.mark.parametrize("text", ["two\nlines", "a\ttab", "line\u2028separator"])
def test_a_name_has_one_line(text: str) -> None:
    assert unfit(text) is None
    assert (found := unfit_name(text)) is not None
    assert found.reason == Reason.FIELD_TEXT


def test_every_special_token_of_the_embedded_base_is_refused() -> None:
    tokens = json.loads((ROOT / "infra/base/tokenizer.json").read_text(encoding="utf-8"))[
        "added_tokens"
    ]
    assert tokens
    assert [token["content"] for token in tokens if not unfit(f"What is {token['content']}?")] == []


@given(st.lists(st.text(max_size=8), max_size=4))
def test_the_quick_answer_is_never_wrong(parts: list[str]) -> None:
    if is_plain(" ".join(parts)):
        assert all(unfit(part) is None and unfit_name(part) is None for part in parts)

"""Texts of question files: the encodings that are read, and what may not stand in a prompt or a name."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.corpus.records.texts import LONGEST, RefusedRecord, decode, is_plain, is_unicode, unfit, unfit_name
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
    ("text", "why"),
    [
        ("bell\x07", "holds the control character U+0007"),
        ("escape \x1b[31m", "holds the control character U+001B"),
        ("delete\x7f", "holds the control character U+007F"),
        ("cp1252 as latin-1: \x93", "holds the control character U+0093"),
        ("back\rto the start", "holds the control character U+000D"),
        ("\u202egnp.exe", "holds U+202E, which changes the direction of writing"),
        ("\u2066x\u2069", "holds U+2066, which changes the direction of writing"),
        ("no\u200bthing", "holds U+200B, which cannot be seen"),
        ("\ufeffmark", "holds U+FEFF, which cannot be seen"),
        ("tag \U000e0041", "holds U+E0041, which cannot be seen"),
        ("half \udc80", "is not Unicode text"),
        ("<|vision_start|>", "holds <|vision_start|>, which a model reads as a command"),
        ("a <answer> B </answer>", "holds <answer>, which a model reads as a command"),
        ("</THINK>", "holds </THINK>, which a model reads as a command"),
        ("x" * (LONGEST + 1), f"has {LONGEST + 1} characters, the limit is {LONGEST}"),
    ],
)
def test_what_is_not_read_as_it_is_written_is_named(text: str, why: str) -> None:
    assert unfit(text) == unfit_name(text) == why


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
    assert str(unfit_name(text)).startswith("holds the control character U+")


def test_every_special_token_of_the_embedded_base_is_refused() -> None:
    tokens = json.loads((ROOT / "infra/base/tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert tokens
    assert [token["content"] for token in tokens if not unfit(f"What is {token['content']}?")] == []


@given(st.lists(st.text(max_size=8), max_size=4))
def test_the_quick_answer_is_never_wrong(parts: list[str]) -> None:
    if is_plain(" ".join(parts)):
        assert all(unfit(part) is None and unfit_name(part) is None for part in parts)

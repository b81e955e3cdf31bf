"""What identifies a person: found in its usual spellings, and nowhere in ordinary phrases."""

from __future__ import annotations

import re
from collections import Counter

# the module behind re, which has the parsed form of patterns
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.records.identifiers.find import RULES, find_identifier
from stages.corpus.records.identifiers.rule import IdentifierKind
from tests.corpus.records.identifiers.phrases import HARMLESS, IDENTIFYING

ADVERSARIAL = (
    *("1", "12", "0", "+", "-", "/", ".", " ", ",", ":", "@", "^", "(", ")", "#", "a", "A", "Aa"),
    *("Mr", "Mr. ", "Dr.", "patient ", "Name", "name:", "MRN", "case ", "no.", "ID ", "born "),
    *("5 March", "March 5", "2024", "John", "JOHN ", "Smith, ", "O'", "A. ", "12 Main ", "Street"),
    *("92", "years", "-year-old", "aged ", "tel", "+49", "IL 6270", "http", "://", "www.", "x@y"),
    *(
        "\u00fc",
        "\uff11",
        "\u2013",
        "\u2003",
        "\n",
        "\t",
        "\u0661",
        "\U0001d7d9",
        "\u00bd",
        "\u00df",
    ),
)


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_phrases_identify_nobody(text: str) -> None:
    assert find_identifier(text) is None


@pytest.mark.parametrize(("text", "kind"), IDENTIFYING)
def test_an_identifier_is_found_with_its_kind(text: str, kind: IdentifierKind) -> None:
    found = find_identifier(text)
    assert found is not None
    assert found.kind == kind


def test_the_table_of_phrases_has_every_kind() -> None:
    assert len({*HARMLESS}) >= 60
    counts = Counter(kind for _, kind in IDENTIFYING)
    assert counts.total() == len({text for text, _ in IDENTIFYING}) >= 60
    assert {*counts} == {*IdentifierKind}


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("Mr. Smith", 0),
        ("Cough. Mr. Smith", 7),
        ("  Cough.\n\n  Mr.\t Smith", 12),
        ("½ tablet; \u00fc Mr.\u2003Smith", 12),
        ("since 5.3.2024, MRN 12345", 6),
        ("MRN 12345 since 5.3.2024", 0),
    ],
)
def test_the_first_identifier_is_placed_in_the_text_as_written(text: str, at: int) -> None:
    found = find_identifier(text)
    assert found is not None
    assert found.at == at


@pytest.mark.parametrize(
    "text",
    [
        "Mr.\n\nSmith",
        "Mr.\u00a0Smith",
        "\uff2d\uff52\uff0e \uff33\uff4d\uff49\uff54\uff48",
        "MRN\uff1a \uff11\uff12\uff13",
        "05\u201303\u20132024",
        "05\u22123\u22122024",
        "\u0660\u0661/\u0660\u0662/\u0662\u0660\u0662\u0664",
        "patient\u2019s name: Doe",
        "MRS. SMITH, 54 F",
        "Seen 1 January 2024",
        "Follow-up: 3/5/24-4/5/24",
    ],
)
def test_other_characters_and_white_space_hide_nothing(text: str) -> None:
    assert find_identifier(text) is not None


@pytest.mark.parametrize("harmless", HARMLESS[::9])
@pytest.mark.parametrize(("text", "kind"), IDENTIFYING[::4])
def test_an_identifier_is_found_behind_other_sentences(
    harmless: str, text: str, kind: IdentifierKind
) -> None:
    found = find_identifier(f"{harmless}. {text}")
    assert found is not None
    assert found.at >= len(harmless)
    assert found.kind == kind


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    st.lists(st.sampled_from(ADVERSARIAL), max_size=60),
    st.sampled_from(ADVERSARIAL),
    st.lists(st.sampled_from(ADVERSARIAL), max_size=60),
)
def test_any_text_of_2000_characters_is_searched(
    before: list[str], repeated: str, after: list[str]
) -> None:
    text = ("".join(before) + repeated * 2_000)[:1_900] + "".join(after)[:100]
    found = find_identifier(text)
    if found is not None:
        assert not text[found.at].isspace()
    assert find_identifier(f"{text} . e-mail jane.doe@example.org") is not None


def repetitions(parsed: Any) -> list[tuple[int, list[Any]]]:
    """(Upper bound, content) of all repetitions of a parsed pattern, at its top level."""
    found = []
    for operation, argument in parsed:
        if operation in (parser.MAX_REPEAT, parser.MIN_REPEAT, parser.POSSESSIVE_REPEAT):
            found.append((int(argument[1]), argument[2]))
        elif operation is parser.BRANCH:
            for branch in argument[1]:
                found += repetitions(branch)
        elif operation is parser.SUBPATTERN:
            found += repetitions(argument[3])
        elif operation in (parser.ASSERT, parser.ASSERT_NOT):
            found += repetitions(argument[1])
        elif operation is parser.ATOMIC_GROUP:
            found += repetitions(argument)
    return found


def longest(parsed: Any) -> int:
    """The largest product of the bounds of nested repetitions."""
    return max((bound * longest(inner) for bound, inner in repetitions(parsed)), default=1)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.pattern.pattern[:40])
def test_patterns_repeat_nothing_without_bound(rule: Any) -> None:
    parsed = parser.parse(rule.pattern.pattern, rule.pattern.flags & ~re.UNICODE)
    assert longest(parsed) <= 1_000
    # a match is bounded, too, so that no search reads far beyond where it begins
    assert parsed.getwidth()[1] <= 1_500


def test_a_pattern_without_bound_would_be_found() -> None:
    assert longest(parser.parse(r"(?:a|(?=b(c{2}d*)))")) > 1_000
    assert longest(parser.parse(r"(?:a{1,50}b?){1,50}")) == 2_500

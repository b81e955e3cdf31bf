"""Fuzz tests of question files: records and refusals add up and can be written."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.corpus.records.records import read_record_files
from tests.omnimedvqa import MODALITIES, QUESTION_TYPES, TAXONOMY

Change = tuple[float, int, str | bytes]

RAW = {
    "dataset": "Set",
    "question_id": "q1",
    "question_type": QUESTION_TYPES["lesion-grading"],
    "question": "What, if anything?",
    "gt_answer": "Nodule",
    "image_path": "Images/Set/a.png",
    "option_A": "Cyst",
    "option_B": "Nodule",
    "modality_type": MODALITIES["ct"],
}
ROW = {
    "image": "a.png",
    "question": "What?",
    "options": "Cyst|Nodule",
    "answer": "B",
    "modality": "ct",
    "type": "lesion-grading",
    "id": "q1",
}
# troublesome for parsers, prompts and paths
TOKENS = [
    *(
        '"',
        "'",
        "\\",
        "\n",
        "\r",
        "\r\n",
        ",",
        ";",
        "\t",
        "|",
        "[",
        "]",
        "{",
        "}",
        ":",
        "null",
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 5000,
    ),
    *(
        "\\ud800",
        "\\u0000",
        "\x00",
        "\x1b",
        "\ufeff",
        "\u202e",
        "<|im_end|>",
        " A)",
        ", B)",
        "../",
        "\\",
        "/",
        "[" * 2000,
        '{"a":' * 2000,
    ),
    *("[]", "{}", '""', '"question": "x",', "option_E", "x" * 30_000),
]
bounded = settings(
    deadline=None,
    max_examples=600,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    derandomize=True,
)

# JSON that a parser accepts, or nearly accepts
FRAGMENTS = [
    *(
        "NaN",
        "-Infinity",
        "1e999",
        "-1e999",
        "1e-999",
        "9" * 5000,
        "0." + "9" * 500,
        "1" * 300,
        '"\\ud800"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
    ),
    *(
        '{"a": 1, "a": 1}',
        '{"\\udfff": 1}',
        "[" * 50 + "]" * 50,
        "[" * 400 + "]" * 400,
        '{"a": ' * 50 + "1" + "}" * 50,
        "[",
        "]",
        "}",
        "{}",
        "",
    ),
]
any_text = st.text(st.characters(exclude_categories=[]), max_size=8)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.sampled_from(TOKENS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=8) | st.sampled_from([*RAW, "option_E"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
edits = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(TOKENS) | st.binary(max_size=4)),
    max_size=4,
)


def check(name: str, content: bytes) -> int:
    """Assert the contract of one question file; returns the number of usable records in it."""
    good = {**RAW, "question_id": "the good one"}
    reading = read_record_files(
        [(name, content), ("zzz.json", json.dumps([good]).encode())], TAXONOMY
    )
    assert reading.read == len(reading.records) + len(reading.rows)
    others = [record.fields for record in reading.records if record.location.file == "zzz.json"]
    assert others in ([], [good]), "the other file is unaffected"
    assert len({record.question_id for record in reading.records}) == len(reading.records)
    fields = [record.fields for record in reading.records]
    written = json.dumps(fields, ensure_ascii=False, indent=1, allow_nan=False).encode()
    again = read_record_files([("again.json", written)], TAXONOMY)
    assert [record.fields for record in again.records] == fields, "records survive a round trip"
    for row in reading.rows:
        assert row.where.file in (name, "zzz.json")
        assert row.why
        json.dumps(row, ensure_ascii=False).encode()
    return len(reading.records) - 1


def mutate(content: bytes, changes: list[Change], length: float) -> bytes:
    """Apply (relative position, bytes to remove, insertion); keep a share `length` of the bytes."""
    for position, removed, insertion in changes:
        at = int(position * len(content))
        if isinstance(insertion, str):
            insertion = insertion.encode("utf-8", "surrogatepass")
        content = content[:at] + insertion + content[at + removed :]
    return content[: int(length * len(content))]


def numbered(row: dict[str, str], key: str) -> list[dict[str, str]]:
    return [row | {key: f"q{number}"} for number in range(3)]


def as_csv(rows: list[dict[str, str]], delimiter: str) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(ROW), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
@bounded
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes(name: str, content: bytes) -> None:
    check(name, content)


@bounded
@given(
    st.lists(
        st.builds(
            lambda changes: RAW | changes,
            st.dictionaries(st.sampled_from([*RAW, "x"]), json_values, max_size=2),
        ),
        max_size=4,
    )
)
def test_records_with_any_values(raws: list[dict[str, Any]]) -> None:
    check("a.json", json.dumps(raws).encode())


@bounded
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*RAW, "x", "y"]),
            st.sampled_from(FRAGMENTS) | json_values.map(json.dumps),
        ),
        max_size=3,
    ),
    any_text,
)
def test_records_with_any_further_fields(fields: list[tuple[str, str]], name: str) -> None:
    suffix = "".join(f", {json.dumps(key)}: {value}" for key, value in [*fields, (name, "1")])
    check("a.json", f"[{json.dumps(RAW)[:-1]}{suffix}}}]".encode())


@bounded
@given(
    st.sampled_from([None, 1]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    edits,
    st.floats(0.5, 1.2),
)
def test_mutated_json(
    indent: int | None, encoding: str, changes: list[Change], length: float
) -> None:
    text = json.dumps(numbered(RAW, "question_id"), indent=indent)
    check("a.json", mutate(text.encode(encoding), changes, length))


@bounded
@given(
    st.sampled_from(",;\t"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    edits,
    st.floats(0.5, 1.2),
)
def test_mutated_csv(delimiter: str, encoding: str, changes: list[Change], length: float) -> None:
    text = as_csv(numbered(ROW, "id"), delimiter)
    check("a.csv", mutate(text.encode(encoding), changes, length))


@bounded
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*ROW]), st.text(max_size=12) | st.sampled_from(TOKENS), max_size=2
        ),
        max_size=4,
    )
)
def test_rows_with_any_cells(changes: list[dict[str, str]]) -> None:
    text = as_csv([ROW | change for change in changes], ",")
    check("a.csv", text.encode("utf-8", "surrogatepass"))


def test_all_records_of_good_files_are_usable() -> None:
    assert check("a.json", json.dumps(numbered(RAW, "question_id")).encode()) == 3
    assert check("a.csv", as_csv(numbered(ROW, "id"), ";").encode()) == 3

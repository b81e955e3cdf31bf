"""Refusals of later stages are located in the user's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import InputError
from stages.corpus.quarantine.ledger import Quarantine, RecordLocation, Row, tally
from stages.corpus.quarantine.locations import locate_in_corpus, write_locations
from stages.corpus.quarantine.reasons import Reason

INTERNAL = RecordLocation("data/corpus/ct/records.jsonl", None, "q1", 131)


def refusal(where: RecordLocation) -> Row:
    return Row(where, "a.png", "damaged", Reason.IMAGE_DAMAGED, "Ward", "ct")


def refusals(*rows: Row) -> Quarantine:
    return tally("resize@ct", len(rows), [], rows)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        (RecordLocation("ward.csv", None, "q1", 7), "ward.csv, line 7 (q1)"),
        (RecordLocation("QA/a.json", 3, "q1"), "QA/a.json#3 (q1)"),
        (RecordLocation("QA/\u00e9.json", 3, "q1", 9), "QA/\u00e9.json#3, line 9 (q1)"),
    ],
)
def test_a_refused_record_is_named_by_the_file_and_line_of_the_corpus(
    tmp_path: Path, location: RecordLocation, text: str
) -> None:
    write_locations(tmp_path / "l.parquet", [("q0", INTERNAL), ("q1", location)])
    located = locate_in_corpus(refusals(refusal(INTERNAL)), tmp_path / "l.parquet")
    assert [str(row.where) for row in located.rows] == [text]
    assert located.rows[0]._replace(where=INTERNAL) == refusal(INTERNAL)
    assert located.sets == refusals(refusal(INTERNAL)).sets


def test_records_without_a_known_location_stay_where_they_are(tmp_path: Path) -> None:
    other = refusal(RecordLocation("data/corpus/ct/records.jsonl", None, "q2", 5))
    unnamed = refusal(RecordLocation("ward.csv"))
    quarantine = refusals(other, unnamed)
    assert locate_in_corpus(quarantine, tmp_path / "missing.parquet") == quarantine
    write_locations(tmp_path / "l.parquet", [("q1", INTERNAL)])
    assert locate_in_corpus(quarantine, tmp_path / "l.parquet") == quarantine


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "l.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"l\.parquet .*`dvc repro`"):
        locate_in_corpus(refusals(refusal(INTERNAL)), tmp_path / "l.parquet")


def test_the_order_of_the_records_changes_no_byte(tmp_path: Path) -> None:
    pairs = [("q1", INTERNAL), ("q0", RecordLocation("ward.csv", None, "q0", 2))]
    write_locations(tmp_path / "a.parquet", pairs)
    write_locations(tmp_path / "b.parquet", reversed(pairs))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()

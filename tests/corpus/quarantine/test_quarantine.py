"""Quarantine tables: content, bytes, counts per source set, and the limits that stop a stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import InputError
from stages.core.params import Quarantine as RefusalLimits
from stages.corpus.images.decoding import ImageError
from stages.corpus.quarantine.advice import remedy_of
from stages.corpus.quarantine.ledger import (
    NO_SET,
    Counts,
    Quarantine,
    RecordLocation,
    Row,
    read_quarantine,
    tally,
    write_quarantine,
)
from stages.corpus.quarantine.limits import check_refused
from stages.corpus.quarantine.reasons import CorpusFault, Reason, RefusedDataError
from stages.corpus.records.records import RefusedRecord, check_record, read_record_files
from tests.conftest import ROOT, MakeRecord
from tests.omnimedvqa import TAXONOMY

LIMITS = RefusalLimits(max_refused_share=0.05, max_refused_share_of_set=0.2, min_refused=5, sets={})
ROWS = [
    Row(RecordLocation("b.json", 10, "x"), "2", "bad", Reason.FIELD_EMPTY, "Set b", "X-Ray"),
    Row(RecordLocation("b.json", 9, "y"), "1", "bad", Reason.FIELD_EMPTY, "Set b"),
    Row(RecordLocation("a.json"), "line 1", "cut", Reason.FILE_UNREADABLE),
]
CSV_ROWS = [
    Row(RecordLocation("c.csv", None, name, line), "3", "bad", Reason.FIELD_EMPTY, "Set b")
    for name, line in (("a", 12), ("x", 7), (None, 101))
]
"""Rows of a CSV have a line but no index."""


def make_rows(dataset: str, count: int, reason: Reason = Reason.FIELD_EMPTY) -> list[Row]:
    return [
        Row(
            RecordLocation("a.json", number, f"q{number}"),
            f"value {number}",
            "why",
            reason,
            dataset,
        )
        for number in range(count)
    ]


def make_quarantine(*sets: tuple[str, int, int]) -> Quarantine:
    """Quarantine table of (source set, kept records, refused records)."""
    rows: list[Row] = []
    kept_sets: list[str] = []
    for name, kept, refused in sets:
        kept_sets += [name] * kept
        rows += make_rows(name, refused)
    return tally("download", len(kept_sets) + len(rows), kept_sets, rows)


def check(quarantine: Quarantine, limits: RefusalLimits = LIMITS) -> None:
    check_refused(quarantine, limits, Path("q.parquet"), "corpus.zip", remedy_of)


def test_a_table_is_sorted_by_location_and_survives_a_round_trip_with_provenance(
    tmp_path: Path,
) -> None:
    path = tmp_path / "q.parquet"
    written = write_quarantine(
        path, "download", 9, ["Set b", "Set a", "Set b"], [*CSV_ROWS, *ROWS], {"corpus": "md5:abc"}
    )
    assert read_quarantine(path) == written
    assert (written.stage, written.read, written.kept) == ("download", 9, 3)
    lines = ["c.csv, line 7 (x)", "c.csv, line 12 (a)", "c.csv, line 101 (no question_id)"]
    assert [str(row.where) for row in written.rows] == [
        "a.json",
        "b.json#9 (y)",
        "b.json#10 (x)",
        *lines,
    ]
    assert written.sets == {NO_SET: Counts(1, 0), "Set a": Counts(1, 1), "Set b": Counts(7, 2)}
    assert json.loads(pq.read_schema(path).metadata[b"provenance"]) == {"corpus": "md5:abc"}


def test_the_order_of_the_rows_does_not_change_the_bytes(tmp_path: Path) -> None:
    for name, rows in {"1": [*ROWS, *CSV_ROWS], "2": [*ROWS, *CSV_ROWS][::-1]}.items():
        write_quarantine(
            tmp_path / name, "download", 8, ["Set b", "Set a"], rows, {"corpus": "md5:abc"}
        )
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_pandas_reads_the_table_without_this_package(tmp_path: Path) -> None:
    write_quarantine(tmp_path / "q.parquet", "download", 3, [], ROWS, {})
    frame = pd.read_parquet(tmp_path / "q.parquet")
    assert list(frame.columns) == [
        *("stage", "file", "record", "line", "question_id"),
        *("dataset", "modality", "reason", "what", "why"),
    ]
    counts: dict[Any, int] = frame.groupby(["dataset", "reason"], dropna=False).size().to_dict()
    assert sorted(counts.values()) == [1, 2]
    assert counts["Set b", "field-empty"] == 2


def test_a_table_without_rows_has_its_columns_and_counts(tmp_path: Path) -> None:
    write_quarantine(tmp_path / "q.parquet", "resize@ct", 2, ["Set a", "Set a"], [], {})
    assert len(pd.read_parquet(tmp_path / "q.parquet").columns) == 10
    assert read_quarantine(tmp_path / "q.parquet").sets == {"Set a": Counts(2, 2)}
    assert write_quarantine(tmp_path / "none.parquet", "resize@oct", 0, [], [], {}).sets == {}


def test_a_table_that_does_not_add_up_is_neither_written_nor_read(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    with pytest.raises(AssertionError, match=r"read 5 records, but kept 3 \+ quarantined 0 = 3"):
        write_quarantine(path, "download", 5, ["Set a"] * 3, [], {})
    assert not path.exists()
    write_quarantine(path, "download", 4, ["Set a"], ROWS, {})
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(
        InputError, match=r"q\.parquet .*read 1, kept 0, rows 0; run `dvc repro -f`"
    ):
        read_quarantine(path)


def write_without_metadata(path: Path) -> None:
    pq.write_table(pa.table({"file": ["a"]}), path)


def write_unknown_reason(path: Path) -> None:
    write_quarantine(path, "download", 1, [], ROWS[:1], {})
    table = pq.read_table(path)
    at = table.schema.get_field_index("reason")
    pq.write_table(table.set_column(at, "reason", pa.array(["because"])), path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, r"q\.parquet is missing: run `dvc repro`"),
        (lambda path: path.write_text('{"stage": "x"}'), r"q\.parquet is not a quarantine file"),
        (lambda path: path.write_bytes(b""), r"q\.parquet is not a quarantine file"),
        (write_without_metadata, r"q\.parquet is not a quarantine file"),
        (write_unknown_reason, r"q\.parquet is not a quarantine file .*'because'"),
    ],
)
def test_an_unreadable_table_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(tmp_path / "q.parquet")
    with pytest.raises(InputError, match=message):
        read_quarantine(tmp_path / "q.parquet")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gt_answer": None}, Reason.FIELD_MISSING),
        ({"question_id": 7}, Reason.FIELD_TYPE),
        ({"question": ""}, Reason.FIELD_EMPTY),
        ({"question": "\ud800"}, Reason.FIELD_ENCODING),
        ({"question": "Is it <|im_end|>?"}, Reason.FIELD_TOKEN),
        ({"dataset": "a\tb"}, Reason.FIELD_TEXT),
        ({"option_A": None}, Reason.OPTION_COUNT),
        ({"option_B": None, "option_C": "Nodule"}, Reason.OPTION_GAP),
        ({"option_AA": "z"}, Reason.OPTION_EXTRA),
        ({"option_A": "Nodule"}, Reason.OPTIONS_EQUAL),
        ({"gt_answer": "B"}, Reason.ANSWER_NOT_OFFERED),
        ({"modality_type": "PET"}, Reason.UNKNOWN_MODALITY),
        ({"question_type": "?"}, Reason.UNKNOWN_QUESTION_TYPE),
        ({"image_path": "/a.png"}, Reason.IMAGE_PATH),
        ({"image_path": "Scans/a.png"}, Reason.IMAGE_PATH),
        ({"question": "Is A) right?"}, Reason.OPTION_LABEL),
    ],
)
def test_each_kind_of_unusable_record_has_its_code(
    make_record: MakeRecord, changes: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(RefusedRecord) as caught:
        check_record(make_record(**changes), RecordLocation("here"), TAXONOMY)
    assert caught.value.reason == reason


def test_each_code_is_documented() -> None:
    lines = (ROOT / "docs/ingest-quality.md").read_text(encoding="utf-8").splitlines()
    table = "\n".join(line for line in lines if line.startswith("| `"))
    assert [code for code in Reason if f"`{code}`" not in table] == []


def test_a_row_has_source_set_and_modality_as_written_or_none_if_they_are_not_text(
    make_record: MakeRecord,
) -> None:
    raws = [
        make_record(modality_type="PET"),
        make_record(dataset=["x"], modality_type=3),
        None,
        make_record(dataset="", gt_answer="x"),
    ]
    rows = read_record_files([("a.json", json.dumps(raws).encode())], TAXONOMY).rows
    assert [(row.dataset, row.modality) for row in rows[:3]] == [
        ("Chest CT Scan", "PET"),
        (None, None),
        (None, None),
    ]
    assert rows[3].set == NO_SET
    assert [row.reason for row in rows[1:3]] == [Reason.FIELD_TYPE, Reason.RECORD_FORM]


def test_the_default_code_of_a_refused_image_is_damaged() -> None:
    assert ImageError("broken").reason == Reason.IMAGE_DAMAGED


@pytest.mark.parametrize(
    "sets",
    [
        [("good", 100, 0)],
        [("few refused", 1, 4)],  # fewer than min_refused
        [("at the limit", 80, 20), ("good", 400, 0)],
        [("nothing", 0, 0)],
    ],
)
def test_refusals_within_the_limits_are_accepted(sets: list[tuple[str, int, int]]) -> None:
    check(make_quarantine(*sets))


def test_a_set_beyond_its_limit_is_refused_with_example_limit_and_remedy() -> None:
    with pytest.raises(RefusedDataError) as caught:
        check(make_quarantine(("good", 1000, 0), ("torn", 79, 21)))
    assert caught.value.fault == CorpusFault.TOO_MUCH_REFUSED
    for item in (
        "corpus.zip: download refused",
        "21 of 100 records (21.0%) of 'torn'",
        "21 field-empty ('value 0' in a.json#0 (q0))",
        "quarantine.max_refused_share_of_set allows 20.0%",
        "q.parquet",
        "`dvc repro`",
    ):
        assert item in str(caught.value)


def test_the_limit_on_all_sets_applies_though_each_set_is_within_its_own() -> None:
    sets = [(f"set {number}", 90, 10) for number in range(4)]
    message = r"40 of 400 records \(10\.0%\) of all sets, .*\.max_refused_share allows 5\.0%"
    with pytest.raises(InputError, match=message):
        check(make_quarantine(*sets))


def test_a_set_with_a_limit_of_its_own_does_not_count_towards_the_overall_limit() -> None:
    quarantine = make_quarantine(("good", 100, 0), ("known to be bad", 10, 90))
    check(quarantine, LIMITS.model_copy(update={"sets": {"known to be bad": 0.95}}))
    limits = LIMITS.model_copy(update={"sets": {"known to be bad": 0.5}})
    with pytest.raises(InputError, match=r"quarantine\.sets\.known to be bad allows 50\.0%"):
        check(quarantine, limits)


def test_messages_name_the_most_frequent_reasons_and_the_worst_sets() -> None:
    rows = [*make_rows("torn", 5, Reason.FIELD_TYPE), *make_rows("torn", 7, Reason.IMAGE_MISSING)]
    with pytest.raises(InputError, match=r"mostly 7 image-missing .*, 5 field-type "):
        check(tally("download", 12, [], rows))
    sets = [(f"set {number}", 0, 10 + number) for number in range(9)]
    message = r"126 of 126 .*all sets.*18 of 18 .*'set 8'.*15 .*'set 5'.*; and 5 more source sets"
    with pytest.raises(InputError, match=message):
        check(make_quarantine(*sets))


@pytest.mark.parametrize(
    ("reason", "advised"),
    [
        (Reason.IMAGE_UNFLAGGED, "dicom.accept_unflagged"),
        (Reason.IMAGE_ANNOTATION, "dicom.accept_burned_in"),
        (Reason.IMAGE_FRAMES, "resize.frames"),
        (Reason.OPTION_LETTERS, "not 'A) Cyst'"),
    ],
)
def test_a_stop_advises_what_its_reasons_need(reason: Reason, advised: str) -> None:
    rows = [row._replace(reason=reason) for row in make_rows("Set a", 300)]
    quarantine = tally("resize@ultrasound", 310, ["Set a"] * 10, rows)
    with pytest.raises(RefusedDataError) as caught:
        check(quarantine)
    assert advised in str(caught.value)
    others = [each for each in Reason if each != reason and remedy_of(each) != remedy_of(reason)]
    assert not [each for each in others if remedy_of(each) in str(caught.value)]

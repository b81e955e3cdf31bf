"""Outputs are whole or absent, whatever happens while they are written."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.core.outputs import (
    atomic_directory,
    atomic_file,
    read_json_lines,
    write_json,
    write_json_lines,
)


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError])
def test_a_file_that_fails_half_way_keeps_the_old_one(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    target = tmp_path / "folder" / "result.json"
    write_json(target, {"old": 1})
    with pytest.raises(failure), atomic_file(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise failure
    assert target.read_text(encoding="utf-8") == '{\n "old": 1\n}\n'
    assert sorted(target.parent.iterdir()) == [target]


def test_a_directory_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(RuntimeError), atomic_directory(target) as temporary:
        (temporary / "weights").write_text("half", encoding="utf-8")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_directory_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    for name in ("first", "second"):
        with atomic_directory(target) as temporary:
            (temporary / name).write_text(name, encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["second"]


def test_what_a_killed_run_left_behind_is_not_in_the_next_one(tmp_path: Path) -> None:
    left = tmp_path / ".model.incomplete"
    left.mkdir()
    (left / "rest").write_text("rest", encoding="utf-8")
    with atomic_directory(tmp_path / "model") as temporary:
        assert list(temporary.iterdir()) == []


def test_json_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(values)
def test_json_has_the_bytes_of_json_dumps(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "value.json"
        write_json(path, value)
        assert (
            path.read_text(encoding="utf-8")
            == json.dumps(value, ensure_ascii=False, indent=1) + "\n"
        )


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], [{"a": [float("nan")]}]])
def test_what_is_not_json_is_not_written(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", value)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_lines(tmp_path / "value.jsonl", [{"good": 1}, {"bad": value}])
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=30)
@given(st.lists(st.dictionaries(st.text(max_size=3), values, max_size=3), max_size=4))
def test_json_lines_hold_one_object_per_line(records: list[dict[str, Any]]) -> None:
    expected = [json.dumps(record, ensure_ascii=False) for record in records]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        write_json_lines(path, iter(records))
        assert path.read_bytes() == "".join(f"{line}\n" for line in expected).encode()
        assert list(read_json_lines(path, "remedy")) == [json.loads(line) for line in expected]


@pytest.mark.parametrize("line", [b"", b"[1]", b"3", b"{", b'{"a": 1} {}', b'{"a": "\xff"}'])
def test_a_bad_line_is_named_after_the_good_ones_before_it(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + line + b'\n{"a": 3}\n')
    found = read_json_lines(path, "run it again")
    assert [next(found), next(found)] == [{"a": 1}, {"a": 2}]
    with pytest.raises(InputError, match=r"records\.jsonl, line 3 .*: run it again"):
        next(found)


def test_missing_json_lines_are_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl is missing: run it again"):
        next(read_json_lines(tmp_path / "none.jsonl", "run it again"))

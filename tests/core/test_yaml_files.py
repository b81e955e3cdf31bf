"""YAML 1.2 as DVC reads it, files edited in place, and errors that name file and line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import load_yaml as dvc_load
from dvc.utils.serialize import loads_yaml as dvc_loads

from stages.core.errors import InputError
from stages.core.yaml_files import dump_edited, dump_yaml, load_for_edit, load_yaml, read_yaml

REPOSITORY = Path(__file__).parents[2]
PATH = Path("some.yaml")


@pytest.mark.parametrize(
    ("spelling", "value"),
    [
        ("1e-6", 1e-6),
        ("1.0e-6", 1e-6),
        ("1E6", 1e6),
        ("5.", 5.0),
        (".5", 0.5),
        ("1e", "1e"),
        ("0o17", 15),
        ("010", 10),
        ("0x1F", 31),
        ("1_000", 1000),
        ("12:30:45", "12:30:45"),
        (".inf", math.inf),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("True", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("'null'", "null"),
    ],
)
def test_a_spelling_is_read_as_yaml_1_2_and_as_dvc_reads_it(spelling: str, value: Any) -> None:
    text = f"key: {spelling}\n"
    read = load_yaml(text, PATH)["key"]
    assert (read, type(read)) == (value, type(value))
    assert dvc_loads(text)["key"] == read


@pytest.mark.parametrize(
    "text",
    [
        "key: 2020-01-02\n",
        "key: 2020-01-02T03:04:05Z\n",
        "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n",
        "b:\n  <<: [{x: 1}, {x: 2, z: 3}]\n",
        "%YAML 1.1\n---\nkey: off\n",
    ],
)
def test_dates_merge_keys_and_directives_are_read_as_dvc_reads_them(text: str) -> None:
    assert load_yaml(text, PATH) == dvc_loads(text)


COMMITTED = ["params.yaml", "dvc.yaml", "dvc.lock", "data.dvc", "infra/profiles/full.yaml"]


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_files_are_read_as_dvc_reads_them(name: str) -> None:
    assert read_yaml(REPOSITORY / name) == dvc_load(str(REPOSITORY / name))


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\na: 2\n", 2, "duplicate key"),
        ("a: 1\nb: {c: 1, c: 2}\n", 2, "duplicate key"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", 2, "python/object"),
        ("a: 1\nb: !other x\n", 2, "!other"),
        ("a: 1\nb: 2020-13-45\n", 2, "2020-13-45"),
        ("a: 1\nb: !!bool x\n", 2, "'x'"),
        ("a: 1\nb: *c\n", 2, "undefined alias"),
        ("a: é\nb: \x01\n", 2, "control characters"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("a: b: c\n", 1, "mapping values"),
    ],
)
def test_what_is_refused_is_named_by_file_and_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(InputError) as error:
        load_yaml(text, PATH)
    assert f"some.yaml, line {line}:" in str(error.value)
    assert problem in str(error.value)


def test_bytes_that_are_no_utf_8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(InputError, match=r"latin\.yaml, line 2:"):
        read_yaml(path)


def test_params_come_back_to_the_byte() -> None:
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    assert dump_edited(load_for_edit(text, PATH)) == text


def test_an_edit_changes_its_line_alone() -> None:
    text = """# head
a: &a {x: 1_000, y: "q"}  # of a

b:
  <<: *a
  z: 0o17     # of z
  n: null
"""
    tree = load_for_edit(text, PATH)
    tree["b"]["z"] = 1e-6
    assert dump_edited(tree) == text.replace("z: 0o17     #", "z: 1.0e-6   #")


@pytest.mark.parametrize(
    ("text", "line", "remedy"),
    [
        ("a: 1\nb: ~\n", 2, "'b: null'"),
        ("a: True\n", 1, "'a: true'"),
        ("a: {b: 1,  # lost\n  c: 2}\n", 1, "'a: {b: 1, c: 2}'"),
    ],
)
def test_a_line_that_cannot_be_kept_is_refused(text: str, line: int, remedy: str) -> None:
    with pytest.raises(InputError) as error:
        load_for_edit(text, PATH)
    assert f"some.yaml, line {line}:" in str(error.value)
    assert remedy in str(error.value)


def test_plain_values_are_written_in_their_order_and_come_back() -> None:
    strings = ["1e-6", "é: ", "a\nb", "null", "word " * 100, "what? [x]"]
    data = {"z": 1e-6, "a": [{"x": None, "y": strings}], "empty": {}}
    text = dump_yaml(data)
    assert load_yaml(text, PATH) == dvc_loads(text) == data
    assert list(load_yaml(text, PATH)) == list(data)


def test_the_layout_of_dvc_is_edited_in_ours() -> None:
    text = "# top\na:\n- b  # list\nn:\nm: {x: 1, y: 2}\n"
    tree = load_for_edit(text, PATH)
    tree["m"]["x"] = 3
    assert dump_edited(tree) == "# top\na:\n  - b # list\nn: null\nm: {x: 3, y: 2}\n"

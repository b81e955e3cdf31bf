"""Values are set in params.yaml, and undone, without a trace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.core.errors import InputError
from stages.core.yaml_files import load_yaml
from stages.profiles.schema import merge
from stages.profiles.splice import reset, set_values

PATH = Path("params.yaml")
TEXT = """# head
grpo:  # of the group
  rate: 5.0e-5     # Med-R1: 1e-6
  patterns:        # a list
    - 'a'          # first
    - 'b'
  rewards: {accuracy: 1.0, format: 1.0}  # both
  lora: null       # none

# section
next:
  deep:
    deeper: 1
  # behind deep

last:
  list:
    - 1

    - 2  # two
# tail
"""


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"grpo": {"rate": 1e-6}}, "  rate: 1.0e-6     # Med-R1: 1e-6"),
        ({"grpo": {"patterns": []}}, "  patterns: []     # a list"),
        ({"grpo": {"rewards": {"format": 0.5}}}, "  rewards: {accuracy: 1.0, format: 0.5}  # both"),
        ({"grpo": {"lora": {"rank": 16, "names": ["q"]}}}, "  lora: {rank: 16, names: [q]} # none"),
        ({"grpo": {"new": "x: y"}, "last": None}, "  new: 'x: y'"),
        ({"grpo": {"new": "off"}}, "  new: off"),
    ],
)
def test_a_set_value_keeps_its_comment_and_is_undone(values: dict[str, Any], line: str) -> None:
    edited = set_values(TEXT, values, "mine", PATH)
    assert line in edited.splitlines()
    assert load_yaml(edited, PATH) == merge(load_yaml(TEXT, PATH), values)
    assert reset(edited, PATH) == (TEXT, "mine")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"grpo": {"patterns": ["c"], "new": 1}, "next": {"more": 2}},
            TEXT.replace("\n    - 'a'          # first\n    - 'b'", "\n")
            .replace("patterns:        # a list\n", "patterns: [c]    # a list")
            .replace("# none\n", "# none\n  new: 1\n")
            .replace("deeper: 1\n", "deeper: 1\n  more: 2\n"),
        ),
        ({"last": {"list": None}}, TEXT.replace(":\n    - 1\n\n    - 2  # two", ": null")),
        ({"last": {"new": 1}}, TEXT.replace("# two\n", "# two\n  new: 1\n")),
        (
            {"next": 1, "new": 2},
            TEXT.replace(":\n  deep:\n    deeper: 1", ": 1").replace("two\n", "two\nnew: 2\n"),
        ),
    ],
)
def test_comments_between_entries_stay(values: dict[str, Any], expected: str) -> None:
    edited = set_values(TEXT, values, "mine", PATH)
    assert edited.partition("\n# profile: mine\n")[0] == expected
    assert reset(edited, PATH) == (TEXT, "mine")


# ruamel.yaml rounds numbers of 17 digits with an exponent: editing a file with one is refused
NUMBERS = st.builds(
    lambda digits, exponent: float(f"{digits}e{exponent}"),
    st.integers(-99, 99),
    st.integers(-20, 20),
)
LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | NUMBERS | st.text(max_size=5)
KEYS = st.sampled_from("abc")
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
)
NAMES = ["rate", "patterns", "rewards", "lora", "new", "newer"]
GROUPS = st.fixed_dictionaries(
    {},
    optional={
        "grpo": st.dictionaries(st.sampled_from(NAMES), VALUES),
        "next": st.dictionaries(st.sampled_from(["deep", "new"]), VALUES) | VALUES,
        "last": st.dictionaries(st.sampled_from(["list", "new"]), VALUES) | VALUES,
        "new": VALUES,
    },
)


@settings(max_examples=60)
@given(GROUPS)
@example({"grpo": {"rate": "\x85"}})
@example({"grpo": {"rate": ["a\u2028b", {"c": "\u2029"}]}})
def test_any_values_are_set_and_undone_without_a_trace(values: dict[str, Any]) -> None:
    edited = set_values(TEXT, values, "mine", PATH)
    assert merge(load_yaml(TEXT, PATH), values) == load_yaml(edited, PATH)
    assert [line for line in TEXT.splitlines() if line.startswith("#")] == [
        line for line in edited.partition("\n# profile: ")[0].splitlines() if line.startswith("#")
    ]
    assert reset(edited, PATH)[0] == TEXT


def test_a_reset_preserves_other_edits_and_discards_those_of_set_values() -> None:
    edited = set_values(TEXT, {"grpo": {"rate": 1e-6, "new": 1}}, "mine", PATH)
    edited = edited.replace("rate: 1.0e-6", "rate: 3.0e-6").replace(
        "deeper: 1", "deeper: 2  # mine"
    )
    edited = edited.replace("  new: 1\n", "  new: 1\n  own: 2\n")
    expected = TEXT.replace("deeper: 1", "deeper: 2  # mine").replace("none\n", "none\n  own: 2\n")
    assert reset(edited, PATH)[0] == expected


def test_setting_the_present_values_changes_nothing() -> None:
    values = {"grpo": {"rate": 5.0e-5}, "next": {"deep": {"deeper": 1}}}
    assert set_values(TEXT, values, "mine", PATH) == TEXT
    assert reset(TEXT, PATH) == (TEXT, None)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("  rate: 1.0e-6     # Med-R1: 1e-6\n  patterns", "  patterns", "grpo.rate"),
        ("#< grpo:", "#< grpo", "git checkout params.yaml"),
        ("#< grpo:", "#< grpo: [", "git checkout params.yaml"),
        ("#+       - new", "#+       - [new", "git checkout params.yaml"),
        ("#< grpo:", "more: 1\n#< grpo:", "'more: 1'"),
    ],
)
def test_a_missing_key_or_corrupt_record_is_refused_with_the_remedy(
    old: str, new: str, named: str
) -> None:
    edited = set_values(TEXT, {"grpo": {"rate": 1e-6, "new": 1}}, "mine", PATH)
    assert old in edited
    with pytest.raises(InputError) as error:
        reset(edited.replace(old, new), PATH)
    assert named in str(error.value)
    assert "params.yaml" in str(error.value)


def test_an_anchor_that_a_profile_would_break_is_refused() -> None:
    text = "a: &a\n  x: 1\nb: *a\n"
    with pytest.raises(InputError, match=r"params\.yaml"):
        set_values(text, {"a": 1}, "mine", PATH)


REPLACED: list[dict[str, dict[str, Any]]] = [
    {"next": {"other": {"names": ["A: b", "c"]}, "more": 1}},
    {"last": {"list": [3]}, "grpo": {"rate": 1.0}},
    {"grpo": {"rate": 2.0e-6, "new": None}, "next": {"deep": {"deeper": 2}}},
]


@pytest.mark.parametrize("groups", REPLACED)
def test_groups_are_replaced_as_a_whole_and_restored(groups: dict[str, dict[str, Any]]) -> None:
    text = set_values(TEXT, {}, "own", PATH, groups)
    assert load_yaml(text, PATH) == load_yaml(TEXT, PATH) | groups
    assert reset(text, PATH) == (TEXT, "own")
    assert "# head\n" in text
    assert "\n# section\n" in text


def test_values_of_other_groups_are_set_beside() -> None:
    groups: dict[str, Any] = {"next": {"more": 1}}
    text = set_values(TEXT, {"grpo": {"rate": 1.0}}, "own", PATH, groups)
    assert load_yaml(text, PATH) == merge(load_yaml(TEXT, PATH) | groups, {"grpo": {"rate": 1.0}})
    assert reset(text, PATH) == (TEXT, "own")


def test_a_group_that_is_the_same_is_left_alone() -> None:
    same = {"next": {"deep": {"deeper": 1}}}
    assert set_values(TEXT, {}, "own", PATH, same) == TEXT


CHECKPOINTS = """\
checkpoints:
  ct: {start: base}  # ours
  # tasks
  # of the paper
  grading: {start: base}   # slow
  x-ray: {start: base}
  # by SFT
  sft-ct: {start: base}  # a baseline
  # off
  # sft-x-ray: {start: base}
"""


@pytest.mark.parametrize(
    ("names", "lines"),
    [
        (
            ["ct", "mri", "grading", "sft-ct"],
            ["ct: {start: new}  # ours", "mri: {start: new}", "grading: {start: new}  # slow"],
        ),
        (["mri", "grading"], ["mri: {start: new}\n", "grading: {start: new}  # slow", "# off"]),
        (["ct"], ["ct: {start: new}  # ours", "# off", "# sft-x-ray: {start: base}"]),
        (["mri"], ["mri: {start: new}", "# off"]),
    ],
)
def test_entries_of_a_replaced_group_keep_the_comments_on_their_lines(
    names: list[str], lines: list[str]
) -> None:
    groups: dict[str, Any] = {"checkpoints": {name: {"start": "new"} for name in names}}
    text = set_values(CHECKPOINTS, {}, "own", PATH, groups)
    written = re.sub(" +", " ", text.partition("\n# profile: ")[0]).replace(" #", "  #")
    assert [line.strip() for line in lines if line not in written] == []
    assert reset(text, PATH) == (CHECKPOINTS, "own")


def test_comments_between_entries_of_a_replaced_group_stay_above_the_next_one() -> None:
    new = {"start": "new"}
    groups: dict[str, Any] = {"checkpoints": {"ct": new, "grading": new, "sft-ct": new}}
    text = set_values(CHECKPOINTS, {}, "own", PATH, groups)
    lines = text.splitlines()
    at = [lines.index(f"  {line}") for line in ("# tasks", "# of the paper")]
    assert lines[at[0] - 1].startswith("  ct:")
    assert lines[at[1] + 1].startswith("  grading:")
    # x-ray is left out, and what stood below it is not
    assert lines[lines.index("  # by SFT") + 1].startswith("  sft-ct:")

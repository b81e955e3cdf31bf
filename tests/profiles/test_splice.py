"""Values are set in the text of params.yaml, and taken back, without a trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.core.errors import InputError
from stages.profiles.splice import reset, set_values

PATH = Path("params.yaml")
TEXT = """# head
grpo:  # of the group
  rate: 5.0e-5     # Med-R1: 1e-6
  patterns:        # a list
    - 'a'          # first
    - 'b'
  rewards: {accuracy: 1.0, format: 1.0}  # both
  lora: null
last: 1
# tail
"""


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"grpo": {"rate": 1e-6}}, "  rate: 1.0e-6     # Med-R1: 1e-6"),
        ({"grpo": {"patterns": []}}, "  patterns: []"),
        ({"grpo": {"rewards": {"format": 0.5}}}, "  rewards: {accuracy: 1.0, format: 0.5}  # both"),
        ({"grpo": {"lora": {"rank": 16, "names": ["q"]}}}, "  lora: {rank: 16, names: [q]}"),
        ({"grpo": {"new": "x: y"}, "last": None}, "  new: 'x: y'"),
    ],
)
def test_a_value_is_one_line_with_its_comment_and_comes_back(values: dict[str, Any], line: str) -> None:
    made = set_values(TEXT, values, "mine", PATH)
    assert line in made.splitlines()
    assert "# head\ngrpo:  # of the group\n" in made
    tree = yaml.safe_load(made)
    assert tree["grpo"].items() >= {key: value for key, value in values["grpo"].items() if not isinstance(value, dict)}.items()
    assert reset(made, PATH) == (TEXT, "mine")


def test_what_is_the_same_already_is_not_touched() -> None:
    assert set_values(TEXT, {"grpo": {"rate": 5.0e-5}, "last": 1}, "mine", PATH) == TEXT
    assert reset(TEXT, PATH) == (TEXT, None)


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (("  rate: 1.0e-6     # Med-R1: 1e-6\n", ""), r"params\.yaml: grpo\.rate, which the profile mine set, is gone"),
        (('#< ["grpo", "rate"]', "#< grpo"), "is not what a profile wrote"),
        (('#< ["grpo", "rate"]', 'more: 1\n#< ["grpo", "rate"]'), "'more: 1' stands among what a profile keeps"),
    ],
)
def test_what_cannot_be_put_back_is_said(broken: tuple[str, str], expected: str) -> None:
    made = set_values(TEXT, {"grpo": {"rate": 1e-6}}, "mine", PATH)
    assert broken[0] in made
    with pytest.raises(InputError, match=expected):
        reset(made.replace(*broken), PATH)

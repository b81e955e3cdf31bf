"""Code that a model brings along is found and removed at any depth of a JSON file."""

from __future__ import annotations

from typing import Any

import pytest

from stages.base import code
from stages.base.code import code_names

NESTED: list[tuple[Any, list[str], Any]] = [
    ({"model_type": "x"}, [], {"model_type": "x"}),
    ({"auto_map": {"AutoModel": "m.M"}, "a": 1}, ["m.M"], {"a": 1}),
    ({"auto_map": "m.M"}, ["m.M"], {}),
    ({"auto_map": {}}, [], {}),
    ({"auto_map": None, "a": [1]}, [], {"a": [1]}),
    (
        {"image_processor": {"auto_map": {"P": "p.P"}, "b": 2}},
        ["p.P"],
        {"image_processor": {"b": 2}},
    ),
    ({"parts": [{"auto_map": {"P": "p.P"}}, {"c": 3}]}, ["p.P"], {"parts": [{}, {"c": 3}]}),
    ([{"auto_map": {"A": "a.A", "B": "b.B"}}], ["a.A", "b.B"], [{}]),
    ("auto_map", [], "auto_map"),
]


@pytest.mark.parametrize(("tree", "names", "without"), NESTED)
def test_code_is_found_and_removed_at_any_depth(tree: Any, names: list[str], without: Any) -> None:
    assert code_names(tree) == names
    assert code._without_code(tree) == without
    assert code_names(without) == []

"""A checkpoint whose weight files are missing, truncated or no safetensors is described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages.policy.weights import INDEX, missing_parts


@pytest.mark.parametrize(
    "index",
    [
        "[]",
        "{}",
        '{"weight_map": 1}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null, "b": "model.safetensors"}}',
    ],
)
def test_a_corrupt_index_is_described(index: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert missing_parts(tmp_path) == []
    (tmp_path / INDEX).write_text(index, encoding="utf-8")
    assert missing_parts(tmp_path)


@pytest.mark.parametrize("offsets", [[], [0], None, "0", {}, [0, 16]])
def test_a_corrupt_header_is_described(offsets: object, tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": offsets}
    header = json.dumps({"a": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(8)
    (tmp_path / "model.safetensors").write_bytes(content)
    (problem,) = missing_parts(tmp_path)
    assert "model.safetensors" in problem

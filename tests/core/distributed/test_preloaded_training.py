"""A training and an evaluation in forks of a server: the same bytes, and hardly an import."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from stages.core import layout
from tests.core.distributed.servers import Server, finish, serving
from tests.workspaces import REPOSITORY, small_workspace

RECORD_IMPORTS = """
import atexit, json, sys
from pathlib import Path
before = set(sys.modules)
def record():
    added = [name for name in sys.modules if name not in before]
    Path(f"imports-{Path(sys.argv[0]).stem}.json").write_text(json.dumps(added))
atexit.register(record)
"""
OPTIONAL = ("deepspeed", "einops", "hjson", "msgpack", "cpuinfo", "py_cpuinfo", "annotated_types")
"""Packages that come with DeepSpeed, which no CPU needs: where it is installed, accelerate imports
it when a training begins, and it prints what a training's user may want to see.
"""


def workspace(root: Path) -> Path:
    """A small workspace whose stages record what they import."""
    root.mkdir()
    small_workspace(root)
    (root / "stages").unlink()
    (root / "stages").mkdir()
    for path in (REPOSITORY / "stages").iterdir():
        if path.name not in ("__init__.py", "__pycache__"):
            (root / "stages" / path.name).symlink_to(path)
    text = (REPOSITORY / "stages" / "__init__.py").read_text(encoding="utf-8")
    (root / "stages" / "__init__.py").write_text(text + RECORD_IMPORTS, encoding="utf-8")
    return root


def imported(root: Path, stage: str) -> list[str]:
    """Modules of others that a stage imported itself."""
    names = json.loads((root / f"imports-{stage}.json").read_text(encoding="utf-8"))
    own = ("stages", "encodings", *OPTIONAL)
    return [name for name in names if name.partition(".")[0] not in own]


def results(root: Path) -> dict[str, bytes]:
    """All that the stages wrote, by path."""
    folders = (layout.model("ct"), layout.training_log("ct").parent, layout.PREDICTIONS)
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_weights_and_answers_are_the_same_bytes_and_libraries_are_imported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as many threads as libraries like: some start them when they are imported
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone, forked = workspace(tmp_path / "alone"), workspace(tmp_path / "forked")

    def run(root: Path, server: Server | None) -> list[str]:
        printed = []
        for stage in ("train", "evaluate"):
            code, out, err = finish(root, stage, "ct", server=server)
            assert code == 0, err
            # a line of DeepSpeed's has the time in it
            printed += [line for line in (out + err).splitlines() if "WARNING" not in line]
        return printed

    with (
        tempfile.TemporaryDirectory(prefix="preloaded-") as short,
        serving(Path(short) / "s") as server,
    ):
        printed = run(forked, server)
        assert "models/ct" in printed[0]
        assert run(alone, None) == printed
        log = server.log.read_text(encoding="utf-8")
    assert "other variables" not in log
    written = results(alone)
    assert str(layout.model("ct") / "model.safetensors") in written
    assert results(forked) == written
    for stage in ("train", "evaluate"):
        few, many = imported(forked, stage), imported(alone, stage)
        assert len(many) > 2000
        assert len(few) < 40, few

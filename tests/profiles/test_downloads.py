"""What cannot be fetched is found before anything is run."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.core.params import Params, load_params
from stages.profiles import downloads
from stages.profiles.downloads import Download, unreachable, wrong_weights
from stages.profiles.schema import load_profile
from tests.corpus.serving import serve

REPOSITORY = Path(__file__).parents[2]


def corpus(source: str, size: int | None = None) -> Download:
    return Download("corpus", source, size, "", False)


def test_a_server_is_asked_for_the_corpus() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    with serve(b"0" * 1000) as server:
        assert unreachable(corpus(server.address), params, 1000) == ""
        assert "has 1000 bytes of it, not 10" in unreachable(corpus(server.address), params, 10)
        server.status = 404
        assert "answers 404" in unreachable(corpus(server.address), params, 1000)
        address = server.address
    assert "is there a network?" in unreachable(corpus(address), params, 1000)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    assert unreachable(corpus(str(tmp_path / "none.zip")), params, None) == "there is no such file"
    assert unreachable(corpus("s3://bucket/corpus.zip"), params, None) == ""


def at(revision: str | None) -> Params:
    """The repository's, with another revision of the base."""
    params = load_params(REPOSITORY / "params.yaml")
    return params.model_copy(update={"base": params.base.model_copy(update={"revision": revision})})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RevisionNotFoundError, "the hub has no commit"),
        (RepositoryNotFoundError, "is base.source spelt right"),
        (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set"),
        (ConnectionError, "is there a network?"),
    ],
)
def test_the_hub_is_asked_for_the_revision(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], expected: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error.__new__(error)

    monkeypatch.setattr(HfApi, "model_info", fail)
    assert expected in unreachable(Download("base", "Qwen/Qwen2", 1, "", False), at("c" * 40), 1)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Qwen/Qwen2", "a model id needs a commit: `med-r1 base-commit Qwen/Qwen2` prints one"),
        ("/nowhere/base", "there is no such folder, and it is not a model id"),
    ],
)
def test_what_stage_base_would_refuse_is_refused_before_the_hub_is_asked(
    monkeypatch: pytest.MonkeyPatch, source: str, expected: str
) -> None:
    monkeypatch.delattr(HfApi, "model_info")
    assert expected in unreachable(Download("base", source, 1, "", False), at(None), 1)


def test_a_base_in_the_cache_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "c" * 40
    folder = tmp_path / "models--owner--tiny" / "snapshots" / commit
    folder.mkdir(parents=True)
    assert downloads.cached("owner/tiny", commit) is None, "nothing was fetched"
    for path in (REPOSITORY / "infra" / "base").iterdir():
        if path.suffix != ".csv":
            (folder / path.name).symlink_to(path)
    assert downloads.cached("owner/tiny", commit) == folder
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    assert downloads.cached("owner/tiny", commit) is None
    weights.write_bytes(content[:-1])
    assert downloads.cached("owner/tiny", commit) is None, "a part of it"


def test_other_weights_in_the_cache_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, full = load_profile("full", REPOSITORY / "infra/profiles")
    assert full.model is not None
    params = load_params(REPOSITORY / "params.yaml")
    params = params.model_copy(
        update={"base": params.base.model_copy(update={"source": "Qwen/Qwen2-VL-2B-Instruct"})}
    )
    monkeypatch.setattr(downloads, "cached", lambda *_: tmp_path)
    (first, digest), (second, _) = full.model.sha256.items()
    (tmp_path / "blobs").mkdir()
    for name, blob in ((first, digest), (second, "0" * 64)):
        (tmp_path / "blobs" / blob).touch()
        (tmp_path / name).symlink_to(tmp_path / "blobs" / blob)
    assert wrong_weights(full, params) == [second]

"""Unreachable sources and wrong cached files are detected before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from stages.base.hub import cached_snapshot
from stages.core.dvc_files import Dependency, DvcFile, Out, Repository
from stages.core.errors import InputError
from stages.core.params import Params, load_params
from stages.profiles.downloads import Download, downloads, find_obstacle, wrong_weights
from stages.profiles.schema import load_profile
from tests.corpus.serving import serve

REPOSITORY = Path(__file__).parents[2]


def corpus(source: str, size: int | None = None) -> Download:
    return Download("corpus", source, size, "", False)


def test_a_corpus_on_a_server_is_checked_by_status_and_size() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    with serve(b"0" * 1000) as server:
        assert find_obstacle(corpus(server.address, 1000), params) == ""
        assert "1000 bytes on the server, not 10" in find_obstacle(
            corpus(server.address, 10), params
        )
        server.status = 404
        assert "answers 404" in find_obstacle(corpus(server.address, 1000), params)
        address = server.address
    assert "is there a network?" in find_obstacle(corpus(address, 1000), params)


def test_a_missing_local_corpus_is_refused(tmp_path: Path) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    assert find_obstacle(corpus(str(tmp_path / "none.zip")), params) == "there is no such file"
    assert find_obstacle(corpus("s3://bucket/corpus.zip"), params) == ""


def pinned(source: str = "a.zip", md5: str | None = None, size: int | None = None) -> DvcFile:
    """A data.dvc that imports `source` to corpus.zip."""
    out = Out(path="corpus.zip", md5=md5, size=size)
    return DvcFile(deps=(Dependency(path=source),), outs=(out,))


OLD = pinned(md5="1" * 32, size=4)


@pytest.mark.parametrize(
    ("wanted", "present", "is_local"),
    [
        (OLD, OLD, True),
        (pinned("other.zip"), OLD, False),  # size and hash unknown: it may be another file
        (pinned("other.zip", size=4), OLD, True),
        (pinned("other.zip", size=5), OLD, False),
        (pinned(), DvcFile(), False),
    ],
)
def test_a_file_in_place_counts_only_if_it_is_known_to_be_the_wanted_one(
    wanted: DvcFile,
    present: DvcFile,
    is_local: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    monkeypatch.chdir(tmp_path)
    Path("corpus.zip").write_bytes(b"1234")
    _, profile = load_profile("sample", REPOSITORY / "infra" / "profiles")
    assert downloads(profile, params, wanted, present)[0].is_local is is_local
    Path("corpus.zip").unlink()
    assert not downloads(profile, params, wanted, present)[0].is_local


def test_an_import_from_another_repository_is_not_searched_here() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    _, profile = load_profile("sample", REPOSITORY / "infra" / "profiles")
    dep = Dependency(path="data/a.zip", repo=Repository(url="https://host/project"))
    file = DvcFile(deps=(dep,), outs=(Out(path="none.zip"),))
    download = downloads(profile, params, file, DvcFile())[0]
    assert "https://host/project" in download.source
    assert find_obstacle(download, params) == ""


def test_a_data_file_that_imports_nothing_is_refused() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    _, profile = load_profile("sample", REPOSITORY / "infra" / "profiles")
    with pytest.raises(InputError, match=r"data\.dvc imports nothing: .*`deps`"):
        downloads(profile, params, DvcFile(), DvcFile())


def params_at(revision: str | None) -> Params:
    """The repository's settings with another revision of the base."""
    params = load_params(REPOSITORY / "params.yaml")
    return params.model_copy(update={"base": params.base.model_copy(update={"revision": revision})})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RevisionNotFoundError, "the hub has no commit"),
        (RepositoryNotFoundError, "is base.source right"),
        (OfflineModeIsEnabled, "HF_HUB_OFFLINE is set"),
        (ConnectionError, "is there a network?"),
    ],
)
def test_a_failed_lookup_on_the_hub_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], expected: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error.__new__(error)

    monkeypatch.setattr(HfApi, "model_info", fail)
    assert expected in find_obstacle(
        Download("base", "Qwen/Qwen2", 1, "", False), params_at("c" * 40)
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Qwen/Qwen2", "a model id needs a commit: `med-r1 base-commit Qwen/Qwen2` prints one"),
        ("/nowhere/base", "there is no such folder, and it is not a model id"),
    ],
)
def test_a_source_that_stage_base_would_refuse_is_refused_without_a_request(
    monkeypatch: pytest.MonkeyPatch, source: str, expected: str
) -> None:
    monkeypatch.delattr(HfApi, "model_info")
    assert expected in find_obstacle(Download("base", source, 1, "", False), params_at(None))


def test_an_incomplete_base_in_the_cache_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "c" * 40
    folder = tmp_path / "models--owner--tiny" / "snapshots" / commit
    folder.mkdir(parents=True)
    assert cached_snapshot("owner/tiny", commit) is None, "empty folder"
    for path in (REPOSITORY / "infra" / "base").iterdir():
        if path.suffix != ".csv":
            (folder / path.name).symlink_to(path)
    assert cached_snapshot("owner/tiny", commit) == folder
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    assert cached_snapshot("owner/tiny", commit) is None
    weights.write_bytes(content[:-1])
    assert cached_snapshot("owner/tiny", commit) is None, "truncated weights"


def test_cached_weights_that_differ_from_the_pin_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, full = load_profile("full", REPOSITORY / "infra/profiles")
    assert full.model is not None
    params = load_params(REPOSITORY / "params.yaml")
    params = params.model_copy(
        update={"base": params.base.model_copy(update={"source": "Qwen/Qwen2-VL-2B-Instruct"})}
    )
    monkeypatch.setattr("stages.profiles.downloads.cached_snapshot", lambda *_: tmp_path)
    (first, digest), (second, _) = full.model.sha256.items()
    (tmp_path / "blobs").mkdir()
    for name, blob in ((first, digest), (second, "0" * 64)):
        (tmp_path / "blobs" / blob).touch()
        (tmp_path / name).symlink_to(tmp_path / "blobs" / blob)
    assert wrong_weights(full, params) == [second]

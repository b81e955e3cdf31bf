"""What this machine lacks is named with its remedy."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from flows.doctor import machine
from flows.doctor.findings import Finding
from stages.core.yaml_files import dump_yaml
from tests.flows.tiny import REPOSITORY, make_workspace

SMI = "#!/bin/sh\necho '0, NVIDIA H200, 143771 MiB, 570.00'\n"


def levels(findings: list[Finding]) -> dict[str, str]:
    return {finding.check: finding.level for finding in findings}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the path, and no nvidia-smi behind it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{Path(sys.executable).parent}")
    return folder


def test_a_machine_without_a_gpu_is_a_warning_and_torch_is_not_checked(
    tmp_path: Path, bare: Path
) -> None:
    assert levels(machine.gpu_parts(tmp_path)) == {"GPU": "warning"}


def test_a_gpu_that_torch_does_not_see_is_a_problem(
    tmp_path: Path, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (bare / "nvidia-smi").write_text(SMI, encoding="utf-8")
    (bare / "nvidia-smi").chmod(0o755)
    findings = {finding.check: finding for finding in machine.gpu_parts(tmp_path)}
    assert findings["GPU"].what == "0, NVIDIA H200, 143771 MiB, 570.00"
    assert findings["torch"].level == "problem"
    assert "sees no GPU" in findings["torch"].what


@pytest.mark.parametrize(
    ("params", "flash", "deepspeed"),
    [
        ({"base": {"attention": "sdpa"}, "grpo": {"parallel": "auto"}}, "warning", "warning"),
        ({"base": {"attention": "flash_attention_2"}}, "problem", "warning"),
        (
            {"base": {"attention": {"language": "sdpa", "vision": "flash_attention_2"}}},
            "problem",
            "warning",
        ),
        ({"grpo": {"parallel": "zero2"}}, "warning", "problem"),
    ],
)
def test_a_missing_library_is_a_problem_only_if_parameters_need_it(
    tmp_path: Path, params: dict[str, object], flash: str, deepspeed: str
) -> None:
    (tmp_path / "params.yaml").write_text(dump_yaml(params), encoding="utf-8")
    assert levels(machine.gpu_libraries(tmp_path)) == {"flash-attn": flash, "deepspeed": deepspeed}


def test_an_installed_library_is_named_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, version in (("flash_attn", "2.8.3"), ("deepspeed", "0.18.6")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [(finding.level, finding.what) for finding in machine.gpu_libraries(tmp_path)] == [
        ("ok", "2.8.3"),
        ("ok", "0.18.6"),
    ]


@pytest.mark.parametrize(("share", "level"), [(0.0, "ok"), (0.7, "warning"), (1.3, "problem")])
def test_free_space_is_compared_with_the_size_of_the_last_outputs(
    tmp_path: Path, share: float, level: str
) -> None:
    root = make_workspace(tmp_path / "workspace", keys=("a",))
    size = int(share * shutil.disk_usage(root).free)
    (root / "dvc.lock").write_text(
        dump_yaml({"stages": {"train@a": {"outs": [{"path": "models", "size": size}]}}}),
        encoding="utf-8",
    )
    (root / ".dvc" / "cache").mkdir()
    (root / ".dvc" / "cache" / "old").write_bytes(b"x" * 2048)
    (finding,) = machine.disk(root)
    assert finding.level == level
    assert "DVC's cache holds 2.0 KiB" in finding.what


def test_this_installation_meets_the_requirements() -> None:
    assert levels(machine.versions(REPOSITORY)) == {"versions": "ok"}


def test_each_unmet_requirement_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nrequires-python = ">=4"\ndependencies = ["dvc>=99", "no-such-library>=1",'
        ' "psutil>=1", "tqdm<1; python_version < \'3\'"]\n',
        encoding="utf-8",
    )
    (finding,) = machine.versions(tmp_path)
    assert finding.level == "problem"
    assert "(>=4 is needed); dvc 3." in finding.what
    assert "(>=99 is needed); no-such-library missing (>=1 is needed)" in finding.what
    assert "psutil" not in finding.what
    assert "tqdm" not in finding.what


@pytest.mark.parametrize("text", ["[project", "[tool]\n", '[project]\ndependencies = ["a b c"]\n'])
def test_a_pyproject_that_cannot_be_read_is_a_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    assert levels(machine.versions(tmp_path)) == {"versions": "problem"}


def test_code_without_a_known_commit_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (finding,) = machine.code_commit(tmp_path)
    assert (finding.level, "not a git repository" in finding.what) == ("warning", True)
    (finding,) = machine.code_commit(Path(__file__).parents[3])
    assert finding.check == "git"

"""`med-r1`: help, cheap imports, exit codes, and that every quoted command exists."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from flows.command_line import application
from flows.command_line.application import (
    command,
    complete_checkpoint,
    complete_profile,
    make_group,
)
from flows.doctor import server
from flows.reproduce.flow import reproduce
from flows.retraining.flow import retrain
from flows.workers.flow import DEPLOYMENT, reproduce_on_workers, run_stage_on_worker
from stages.core.errors import ExitCode, InputError
from stages.core.params import load_params
from tests.commands import MED_R1, med_r1
from tests.conftest import ROOT

HEAVY = ("torch", "prefect", "dvc", "pandas", "matplotlib", "numpy", "ruamel.yaml")
QUOTING = (
    "README.md",
    "CONTRIBUTING.md",
    "Makefile",
    "docs/*.md",
    "infra/**/*",
    "flows/**/*.py",
    "stages/**/*.py",
    "benchmarks/**/*.py",
)
QUOTED = re.compile(r"(?<!namespace )med-r1 ([a-z][^`\n#\"]*)")
PLACEHOLDERS = str.maketrans("[]|", "   ")


def walk(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every group and command with the words that name it."""
    yield path, group
    for name, each in getattr(group, "commands", {}).items():
        yield from walk(each, (*path, name))


COMMANDS = dict(walk(typer.main.get_command(application.app)))
LEAVES = [path for path, each in COMMANDS.items() if not hasattr(each, "commands")]


def quoted_commands() -> list[tuple[str, str]]:
    """Arguments of each `med-r1` command line in code and documents, with the file's path."""
    lines = []
    for pattern in QUOTING:
        for path in sorted(ROOT.glob(pattern)):
            if path.suffix in (".md", ".py", ".sh", ".yaml", ".sbatch", "") and path.is_file():
                text = path.read_text(encoding="utf-8")
                lines += [(str(path.relative_to(ROOT)), line) for line in QUOTED.findall(text)]
    return lines


def command_of(words: list[str]) -> tuple[str, ...]:
    """The longest beginning of `words` that names a group or command."""
    return max((path for path in COMMANDS if tuple(words[: len(path)]) == path), key=len)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_examples(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert med_r1(*path, "--help") == 0
    output = capsys.readouterr().out
    assert output.startswith(f"Usage: {' '.join(('med-r1', *path))}")
    assert "..." not in output.partition("\n")[2], "a summary does not fit into 80 columns"
    if path in LEAVES:
        assert f"  med-r1 {' '.join(path)}" in output.partition("Examples:\n")[2]
        assert all(each.help for each in COMMANDS[path].params)


def test_commands_are_grouped_in_panels(capsys: pytest.CaptureFixture[str]) -> None:
    med_r1("--help")
    titles = re.findall(r"^(\w+):$", capsys.readouterr().out, re.MULTILINE)
    assert titles == ["Options", *application.PANELS]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, flows.command_line as c\ntry: c.main(['plan', '--help'])\nfinally:"
        f" print(set({HEAVY}) & set(sys.modules))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert process.stdout.splitlines()[-1] == "set()"


def test_every_quoted_command_line_exists() -> None:
    lines = quoted_commands()
    assert len(lines) > 50
    for file, line in lines:
        words = re.split(r"  +", line)[0].translate(PLACEHOLDERS).split()
        path = command_of(words)
        assert path, f"{file}: no command in 'med-r1 {line}'"
        options = {word.partition("=")[0].strip(".,;:)") for word in words if word.startswith("-")}
        known = {"--help"}
        for each in COMMANDS[path].params:
            known.update(each.opts, each.secondary_opts)
        assert options <= known, f"{file}: med-r1 {line}"


def test_every_command_is_in_a_document_or_a_message() -> None:
    documented = {
        command_of(line.split())
        for file, line in quoted_commands()
        if not file.startswith("flows/command_line/")
    }
    assert not set(LEAVES) - documented


def test_the_installed_program_is_this_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "scripts"
    ]
    module, _, name = scripts["med-r1"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_without_installation_the_package_runs_as_a_module() -> None:
    arguments = [*MED_R1, "report", "--help"]
    process = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0
    assert process.stdout.startswith("Usage: med-r1 report")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["chek"],
        ["plan", "--slots", "two"],
        ["plan", "--colour"],
        ["champion", "checkout", "ct"],
    ],
)
def test_a_wrong_command_line_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert med_r1(*arguments) == 2
    assert "med-r1" in capsys.readouterr().err


def test_two_checksums_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "file"
    assert med_r1("fetch-file", "README.md", target, "--sha256", "0", "--md5", "0") == 2
    assert not target.exists()


@pytest.mark.parametrize(
    ("result", "code"),
    [(None, 0), (0, 0), (3, 3), (InputError("bad"), ExitCode.INPUT), (KeyboardInterrupt(), 130)],
)
def test_exit_codes_of_commands(result: int | BaseException | None, code: int) -> None:
    group = make_group("Commands of a test.")

    @command(group)
    def only() -> int | None:
        """Return or raise the result."""
        if isinstance(result, BaseException):
            raise result
        return result

    with pytest.raises(SystemExit) as ended:
        group([])
    assert (ended.value.code or 0) == code


def test_bad_input_exits_with_the_code_of_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert med_r1("profile", "full") == ExitCode.INPUT
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "module", "arguments"),
    [
        (["reproduce"], "flows.reproduce.flow", (None, None, None)),
        (["reproduce", "--slots", "3"], "flows.reproduce.flow", (None, 3, None)),
        (["retrain"], "flows.retraining.flow", (False, False, None, None, None)),
        (["workers"], "flows.workers.flow", (None, None, DEPLOYMENT)),
        (["plan"], "flows.planning.plan", (ROOT, None, None)),
    ],
)
@pytest.mark.parametrize("slots_per_gpu", [1, 2])
def test_the_slots_per_gpu_reach_every_flow(
    words: list[str],
    module: str,
    arguments: tuple[Any, ...],
    slots_per_gpu: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[Any, ...]] = []
    target = importlib.import_module(module)
    monkeypatch.setattr(target, "run", lambda *given, **_: calls.append(given))
    monkeypatch.setattr(importlib.import_module("flows.command_line.run"), "use_own_prefect", id)
    monkeypatch.chdir(ROOT)
    option = [] if slots_per_gpu == 1 else ["--slots-per-gpu", str(slots_per_gpu)]
    assert med_r1(*words, *option) == 0
    assert calls == [(*arguments, slots_per_gpu)]


@pytest.mark.parametrize("flow", [reproduce, retrain, reproduce_on_workers, run_stage_on_worker])
def test_every_flow_that_uses_gpus_has_the_parameter(flow: Any) -> None:
    parameter = inspect.signature(flow.fn).parameters["slots_per_gpu"]
    assert parameter.default == 1
    assert "slots_per_gpu: " in flow.fn.__doc__


def test_names_are_completed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert complete_checkpoint("") == list(load_params().checkpoints)
    assert complete_checkpoint("c") == ["ct"]
    assert complete_profile("") == []
    monkeypatch.chdir(ROOT)
    assert complete_profile("full") == ["full", "full-3b"]


@pytest.mark.parametrize("text", [None, "checkpoints: [", "[]", "checkpoints:"])
def test_completion_of_a_corrupt_project_is_empty(project: Path, text: str | None) -> None:
    (project / "params.yaml").unlink()
    if text is not None:
        (project / "params.yaml").write_text(text, encoding="utf-8")
    assert complete_checkpoint("") == []


def test_defaults_copied_for_cheap_help_are_those_of_the_modules() -> None:
    parameters = [*COMMANDS[("doctor",)].params, *COMMANDS[("workers",)].params]
    defaults = {each.name: each.default for each in parameters}
    assert defaults["silence"] == server.SILENCE.total_seconds() / 60
    assert defaults["deployment"] == DEPLOYMENT


ANYWHERE = (("base-commit",), ("check",), ("compare",), ("doctor",), ("fetch-file",))
"""Commands that need no project."""
ARGUMENTS = {
    ("profile",): ["full"],
    ("use",): ["ward"],
    ("publish",): ["ct"],
    ("champion", "checkout"): ["ct", "weights"],
    ("champion", "promote"): ["--why", "new base"],
}


@pytest.mark.parametrize("path", [path for path in LEAVES if path not in ANYWHERE], ids=" ".join)
@pytest.mark.parametrize("below", [True, False])
def test_outside_the_root_of_a_project_a_command_says_where_to_go_and_writes_nothing(
    path: tuple[str, ...],
    below: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "docs" / "guides"
    folder.mkdir(parents=True)
    if below:
        for name in ("params.yaml", "dvc.yaml"):
            (tmp_path / name).write_text("{}\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(folder)
    assert med_r1(*path, *ARGUMENTS.get(path, [])) == ExitCode.INPUT
    remedy = f"`cd {tmp_path}`" if below else "change to the folder of your clone"
    assert re.search(
        rf"error: {folder} is not the root of a project, .*{re.escape(remedy)}",
        capsys.readouterr().err,
    )
    assert sorted(tmp_path.rglob("*")) == before

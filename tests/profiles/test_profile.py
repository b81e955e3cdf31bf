"""`med-r1 profile`: applied and undone without a trace; nothing written for impossible runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.core.machine import Gpu, Torch
from stages.core.params import load_params
from stages.core.yaml_files import dump_yaml, read_yaml
from stages.profiles import checks, downloads
from stages.profiles import command as profile
from stages.profiles.checks import Machine
from stages.profiles.needs import memory, needs
from stages.profiles.pins import save_pin, with_import
from stages.profiles.schema import load_profile

REPOSITORY = Path(__file__).parents[2]
H200 = Gpu("NVIDIA H200", 150_000_000_000, 149_000_000_000)
FILES = ("params.yaml", "data.dvc")
RELEASED = Path("infra/released.dvc")


def machine(*gpus: Gpu, broken: str = "", flash: str = "") -> Machine:
    return Machine([gpu.name for gpu in gpus], Torch("2.11.0", "13.0", gpus, broken, flash), "")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project on a machine with one H200, a large disk, and a network that has everything."""
    for name in FILES:
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copytree(REPOSITORY / "infra/profiles", tmp_path / "infra/profiles")
    for name in ("base", "sample"):
        (tmp_path / "infra" / name).symlink_to(REPOSITORY / "infra" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profile, "read_machine", lambda: machine(H200))
    monkeypatch.setattr(checks, "find_obstacle", lambda *_: "")
    monkeypatch.setattr(downloads, "cached_snapshot", lambda *_: None)
    set_free_disk(monkeypatch, 10**13)
    return tmp_path


def set_free_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))


def content(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in FILES}


def apply(name: str, *, dry_run: bool = False, elsewhere: bool = False) -> None:
    profile.apply(name, dry_run=dry_run, elsewhere=elsewhere)


def own(root: Path, text: str) -> str:
    (root / "own.yaml").write_text(text, encoding="utf-8")
    return "own.yaml"


@pytest.mark.parametrize("names", [["full"], ["full", "full-3b"], ["full-3b", "full", "full"], []])
def test_returning_to_the_sample_restores_every_byte(root: Path, names: list[str]) -> None:
    before = content(root)
    for name in names:
        apply(name)
        assert content(root)["params.yaml"] != before["params.yaml"]
        assert RELEASED.exists()
    apply("sample")
    assert content(root) == before
    assert not RELEASED.exists()


def test_profile_full_keeps_comments_and_sets_the_values_of_the_paper(root: Path) -> None:
    comments = {line.partition("#")[2] for line in (root / "params.yaml").read_text().splitlines()}
    apply("full")
    text = (root / "params.yaml").read_text()
    assert comments <= {line.partition("#")[2] for line in text.splitlines()}
    params = load_params()
    assert (params.grpo.learning_rate, params.grpo.num_generations, params.base.max_pixels) == (
        1e-6,
        4,
        401408,
    )
    assert params.grpo.prompts_per_device * params.grpo.gradient_accumulation_steps == 4
    assert params.prompt.style == "no-think"
    imports = read_yaml(root / "data.dvc")
    assert imports["meta"]["sha256"].startswith("12245e0f")


def test_profile_full_imports_the_split_files_of_the_paper_at_a_commit(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apply("full")
    assert "split files: to fetch" in capsys.readouterr().out
    params = load_params()
    assert params.splits.kind == "released"
    imports = read_yaml(RELEASED)
    assert imports["deps"][0]["repo"]["rev"] == "88d76c7"
    assert imports["outs"][0]["path"] == params.splits.released.folder
    # fetched: the hashes survive another profile of the same import, and another corpus between
    fetched = imports | {"outs": [imports["outs"][0] | {"md5": "0a" * 16 + ".dir"}]}
    RELEASED.write_text(dump_yaml(fetched), encoding="utf-8")
    for name in ("full-3b", "sample", "full"):
        apply(name)
    assert read_yaml(RELEASED)["outs"] == fetched["outs"]
    # another commit is another import
    apply(
        own(root, (REPOSITORY / "infra/profiles/full.yaml").read_text().replace("88d76c7", "abc"))
    )
    assert "md5" not in read_yaml(RELEASED)["outs"][0]


def test_an_import_of_the_user_is_not_removed(root: Path) -> None:
    theirs = "deps:\n- path: ../splits\nouts:\n- path: mine\n"
    RELEASED.write_text(theirs, encoding="utf-8")
    apply("sample")
    assert RELEASED.read_text(encoding="utf-8") == theirs


def test_edits_of_other_lines_survive_a_profile(root: Path) -> None:
    apply("full")
    path = root / "params.yaml"
    path.write_text(path.read_text().replace("bootstrap_samples: 10000", "bootstrap_samples: 2000"))
    apply("sample")
    assert path.read_text() == (REPOSITORY / "params.yaml").read_text().replace(
        "bootstrap_samples: 10000", "bootstrap_samples: 2000"
    )


def test_each_shipped_profile_is_valid_and_uses_no_think(root: Path) -> None:
    for path in sorted((root / "infra/profiles").glob("*.yaml")):
        apply(path.stem)
        assert load_params().prompt.style == "no-think"


def test_the_sample_profile_pins_the_committed_data_dvc(root: Path) -> None:
    _, sample = load_profile("sample")
    assert with_import("", sample.data, root) == (REPOSITORY / "data.dvc").read_text()


def test_a_dry_run_prints_everything_and_writes_nothing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(root)
    apply("full", dry_run=True)
    assert content(root) == before
    output = capsys.readouterr().out
    for part in (
        "+  source: Qwen/Qwen2-VL-2B-Instruct",
        "10.7 GB",
        "SHA-256 12245e0f99afbc7d6f70e4ca3c2e5a7979a01816cd8159ae34539f4aa76adee0",
        "4.4 GB",
        "revision 895c3a49bc3fa70a340399125c650a463535e71c",
        "GPU memory: about",
        "on the 1 x NVIDIA H200 found",
        "estimates",
        "dry run: nothing was written",
    ):
        assert part in output


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (
            machine(),
            "none, and on a CPU a model of 2.2 billion parameters would train for months",
        ),
        (
            Machine(
                ["0, NVIDIA H200"], Torch("2.11.0", "13.0", (), "the driver is too old", ""), ""
            ),
            "the driver is too old",
        ),
        (
            machine(H200, broken="no kernel image is available"),
            "which was built for CUDA 13.0, cannot use it: no kernel image",
        ),
        (
            Machine([], None, "No module named torch"),
            "torch cannot be imported: No module named torch",
        ),
        (machine(Gpu("NVIDIA H200", 150 * 10**9, 10**9)), "end the processes that use it"),
        (machine(Gpu("NVIDIA L4", 24 * 10**9, 24 * 10**9)), "a training takes about"),
    ],
)
def test_a_machine_that_cannot_run_it_is_refused(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    here: Machine,
    expected: str,
) -> None:
    before = content(root)
    monkeypatch.setattr(profile, "read_machine", lambda: here)
    with pytest.raises(InputError, match="cannot finish here, for 1 reason"):
        apply("full")
    assert expected in capsys.readouterr().err
    assert content(root) == before
    apply("full", elsewhere=True)
    assert content(root) != before


def test_the_remedy_for_a_small_gpu_names_settings_that_fit(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        profile, "read_machine", lambda: machine(Gpu("NVIDIA H100", 85 * 10**9, 85 * 10**9))
    )
    apply("full", dry_run=True)
    with pytest.raises(InputError):
        apply("full-3b")
    assert "or your own profile with grpo.prompts_per_device: 1" in capsys.readouterr().err


def test_images_of_the_largest_question_count_in_the_memory_of_a_gpu(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        profile, "read_machine", lambda: machine(Gpu("NVIDIA H100", 85 * 10**9, 85 * 10**9))
    )
    own = root / "own.yaml"
    scale = "scale: {questions: 9000, images: 9000, volume_share: 0.1}\n"
    params = "params: {volume: {frames: FRAMES}, evaluate: {ablations: true}}\n"
    text = f"extends: full\n{scale}{params}"
    own.write_text(text.replace("FRAMES", "1"), encoding="utf-8")
    apply(str(own), dry_run=True)
    own.write_text(text.replace("FRAMES", "16"), encoding="utf-8")
    capsys.readouterr()
    with pytest.raises(InputError):
        apply(str(own), dry_run=True)
    printed = capsys.readouterr()
    assert "MISSING: GPU memory" in printed.err
    assert "answers per test question and policy: 3.3, for the hours" in printed.out
    assert "one image removed 0.10 (15)" in printed.out


def test_a_small_disk_is_refused_unless_most_outputs_exist(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_free_disk(monkeypatch, 10**11)
    with pytest.raises(InputError):
        apply("full")
    assert "GiB are free on the disk of" in capsys.readouterr().err
    for name in ("models/ct", ".scratch/train/mri"):
        (root / name).mkdir(parents=True)
        with (root / name / "model.safetensors").open("wb") as sparse:
            sparse.truncate(120 * 10**9)
    apply("full")


@pytest.mark.parametrize(
    ("compilers", "cc", "is_missing"),
    [((), None, True), (("clang",), None, False), (("gcc",), None, False), ((), "/opt/cc", False)],
)
def test_a_gpu_needs_a_compiler(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    compilers: tuple[str, ...],
    cc: str | None,
    is_missing: bool,
) -> None:
    which = shutil.which

    def find(name: str, *rest: Any, **options: Any) -> str | None:
        if name in ("gcc", "clang"):
            return f"/usr/bin/{name}" if name in compilers else None
        return which(name, *rest, **options)

    monkeypatch.setattr(shutil, "which", find)
    monkeypatch.delenv("CC", raising=False)
    if cc is not None:
        monkeypatch.setenv("CC", cc)
    if not is_missing:
        apply("full", dry_run=True)
        return
    with pytest.raises(InputError, match="for 1 reason"):
        apply("full", dry_run=True)
    error = capsys.readouterr().err
    assert "MISSING: C compiler: TRL compiles its losses" in error
    assert "apt-get install gcc" in error


@pytest.mark.parametrize(
    ("attention", "version", "flash", "expected"),
    [
        (
            "flash_attention_2",
            None,
            "",
            "base.attention is flash_attention_2, and it is not installed",
        ),
        (
            "flash_attention_2",
            "2.8.3",
            "undefined symbol: _ZN3c10",
            "as when it was built for another torch than 2.11.0: undefined",
        ),
        (
            "flash_attention_2",
            "2.8.3",
            "",
            "names flash_attention_2, which computes in 16 bits, and base.dtype is float32",
        ),
        (
            "sdpa",
            "2.8.3",
            "undefined symbol: _ZN3c10",
            "note: flash-attn: 2.8.3 is installed but cannot be imported",
        ),
    ],
)
def test_a_missing_or_incompatible_flash_attn_is_reported(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    attention: str,
    version: str | None,
    flash: str,
    expected: str,
) -> None:
    monkeypatch.setattr(checks, "installed", lambda _: version)
    monkeypatch.setattr(profile, "read_machine", lambda: machine(H200, flash=flash))
    name = own(
        root,
        f"extends: full\nparams:\n  base: {{attention: {attention}}}\n  grpo: {{engine: trl,"
        " num_generations: 2}\n",
    )
    if attention == "sdpa":
        apply(name)
    else:
        with pytest.raises(InputError):
            apply(name)
    assert expected in capsys.readouterr().err


def test_a_profile_overrides_only_the_keys_it_lists(root: Path) -> None:
    apply(own(root, "extends: full\nparams:\n  grpo: {seed: 7}\n  prompt: {style: think}\n"))
    params = load_params()
    assert (params.grpo.seed, params.prompt.style, params.grpo.num_generations) == (7, "think", 4)
    apply("sample")
    assert content(root)["params.yaml"] == (REPOSITORY / "params.yaml").read_bytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "params:\n  grpo: {sead: 7}\n",
            r"own\.yaml has settings .*\n.*grpo\.sead: unknown key; did you mean 'seed'",
        ),
        (
            "params:\n  grpo: {num_generations: 1}\n",
            r"own\.yaml .*\n.*grpo\.num_generations = 1: .*greater than or equal to 2",
        ),
        (
            "params:\n  prompt: {style: thinking}\n",
            r"own\.yaml .*\n.*style = 'thinking': .*'think', 'no-think' or 'think-after'",
        ),
        (
            "param: {}\n",
            r"own\.yaml is not a profile:\n.*param: unknown key; did you mean 'params'",
        ),
        (
            "extends: ful\n",
            (
                r"own\.yaml: extends = 'ful': no profile .*'full'\? Profiles in infra/profiles/:"
                r" full, full-3b, sample"
            ),
        ),
        ("extends: own.yaml\n", r"own\.yaml: extends itself"),
        ("data: {deps: []}\n", r"own\.yaml: data must have one path in `deps`"),
        ("- a\n", r"own\.yaml: expected groups of settings, got list"),
        (
            "data:\n  deps: [{path: a}]\n  outs: [{path: b}]\n  meta: {sha256: 12ab}\n",
            r"data\.meta\.sha256 = '12ab': 64 hex digits",
        ),
    ],
)
def test_an_invalid_profile_is_refused_by_file_key_and_value(
    root: Path, text: str, expected: str
) -> None:
    before = content(root)
    with pytest.raises(InputError, match=expected):
        apply(own(root, text))
    assert content(root) == before


def test_the_pin_of_an_earlier_corpus_is_restored_with_its_profile(root: Path) -> None:
    _, full = load_profile("full")
    assert full.data is not None
    fetched = dump_yaml(
        full.data | {"outs": [{"path": "data/raw/corpus.zip", "md5": "0a" * 16, "size": 5}]}
    )
    save_pin(fetched, Path("data.dvc"), root)
    sample = (root / "data.dvc").read_text()
    assert with_import("# mine\n" + sample, full.data, root) == "# mine\n" + fetched


def test_the_estimate_follows_the_parameters(root: Path) -> None:
    apply("full")
    _, full = load_profile("full")
    params = load_params()
    assert full.model is not None
    assert full.scale is not None
    assert 60e9 < sum(memory(params, full.model).values()) < 85e9
    now = needs(params, full.model, full.scale, "NVIDIA H200")
    think = params.model_copy(
        update={"prompt": params.prompt.model_copy(update={"style": "think"})}
    )
    assert needs(think, full.model, full.scale, "NVIDIA H200").training > now.training
    frozen = params.model_copy(
        update={"grpo": params.grpo.model_copy(update={"freeze_vision_tower": True})}
    )
    assert sum(memory(frozen, full.model).values()) < now.bytes
    assert needs(params, full.model, full.scale, "NVIDIA A100").training > now.training

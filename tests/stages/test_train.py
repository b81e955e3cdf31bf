"""Stage train on a small workspace: what it writes, and what it refuses."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from importlib import util
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages import evaluate, train
from stages.core import layout
from stages.core.distributed.ranks import PROCESSES
from stages.core.errors import ExitCode, InputError
from stages.core.params import load_params
from stages.core.yaml_files import dump_yaml, load_yaml, read_yaml
from stages.grpo.resume import MANIFEST
from stages.predictions.schema import LEFT_OUT
from stages.publishing.bundle import gather
from stages.reporting.sources import read_predictions
from tests.core.distributed.servers import Server, finish, kill, start
from tests.omnimedvqa import AXES
from tests.workspaces import small_workspace


def run_train(monkeypatch: pytest.MonkeyPatch, root: Path, checkpoint: str) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["train", checkpoint])
    train.main()


class Trained(NamedTuple):
    root: Path
    threads: int
    """Of torch after the training; before, there were more."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A workspace where ct and sft-ct are trained from a base with a licence, to be read only."""
    root = tmp_path_factory.mktemp("trained")
    small_workspace(
        root,
        images_a_modality=1,
        sft={"learning_rate": 1e-3, "lr_scheduler": "constant", "warmup_share": 0.0},
    )
    origin = {
        "source": "owner/tiny",
        "commit": "c" * 40,
        "licence": {"license": "other", "license_name": "qwen-research"},
    }
    (root / layout.BASE_MODEL / "base_model.json").write_text(json.dumps(origin), encoding="utf-8")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.MonkeyPatch.context() as patch:
            run_train(patch, root, "ct")
            run_train(patch, root, "sft-ct")
        return Trained(root, torch.get_num_threads())
    finally:
        torch.set_num_threads(before)


OPENS = """
import sys, torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
asked = {"type": "text", "text": "What type of scan is this? A)CT, B)MRI"}
for folder in sys.argv[1:]:
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, asked]}],
        add_generation_prompt=True, tokenize=False,
    )
    inputs = processor(text=[text], images=[Image.new("RGB", (384, 384))], return_tensors="pt")
    print(type(model).__name__, model.generate(**inputs, max_new_tokens=2).shape[0])
assert not any(name.startswith("stages") for name in sys.modules)
"""


def test_trained_checkpoints_open_with_plain_transformers(trained: Trained) -> None:
    # a process of its own, where nothing of this project can be imported
    folders = [str(trained.root / layout.model(name)) for name in ("ct", "sft-ct")]
    done = subprocess.run(
        [sys.executable, "-c", OPENS, *folders], capture_output=True, text=True, cwd="/"
    )
    assert done.stdout.split() == ["Qwen2VLForConditionalGeneration", "1"] * 2, done.stderr
    for folder in folders:
        assert not list(Path(folder).glob("*.bin")), "no pickles"


def test_a_trained_checkpoint_has_learnt_and_says_how(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.root)
    folder = layout.model("ct")
    before = AutoModelForImageTextToText.from_pretrained(
        layout.BASE_MODEL, dtype=torch.float32
    ).state_dict()
    after = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    rows = list(csv.DictReader(layout.training_log("ct").open(encoding="utf-8")))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(
        row[column] != ""
        for row in rows
        for column in (
            "loss",
            "reward",
            "reward_accuracy",
            "reward_format",
            "kl",
            "completion_length",
        )
    )
    facts = json.loads(layout.training_provenance("ct").read_text(encoding="utf-8"))
    assert facts["params"]["grpo"]["max_steps"] == 2
    assert not (folder / "provenance.json").exists(), (
        "another commit alone changes no weights folder"
    )
    assert facts["versions"]["trl"]


def test_a_checkpoint_starts_from_the_policy_that_params_name(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.root, tmp_path, symlinks=True, dirs_exist_ok=True)
    tree = read_yaml(tmp_path / "params.yaml")
    tree["checkpoints"]["mri"]["start"] = "models/ct"
    (tmp_path / "params.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    run_train(monkeypatch, tmp_path, "mri")
    start, after = (
        AutoModelForImageTextToText.from_pretrained(layout.model(name)).state_dict()
        for name in ("ct", "mri")
    )
    base = AutoModelForImageTextToText.from_pretrained(layout.BASE_MODEL).state_dict()

    def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
        return sum(float((one[name].float() - other[name].float()).pow(2).sum()) for name in one)

    assert 0 < distance(start, after) < distance(base, after)
    assert "trained from `models/ct`" in (layout.model("mri") / "README.md").read_text(
        encoding="utf-8"
    )
    tree["checkpoints"]["mri"]["start"] = "models/nowhere"
    (tmp_path / "params.yaml").write_text(dump_yaml(tree), encoding="utf-8")
    with pytest.raises(
        InputError, match=re.escape("models/nowhere is not a Hugging Face checkpoint")
    ) as refused:
        run_train(monkeypatch, tmp_path, "mri")
    assert "checkpoints.mri.start" in str(refused.value)


def test_results_do_not_depend_on_the_cores_of_the_machine(trained: Trained) -> None:
    assert trained.threads == 1, "base.threads"


def test_a_prompt_over_the_limit_is_refused_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path, grpo={"max_prompt_length": 50})
    with pytest.raises(
        InputError, match=r"takes \d+ tokens, more than grpo.max_prompt_length = 50"
    ):
        run_train(monkeypatch, tmp_path, "mri")
    assert not layout.model("mri").exists()
    assert not layout.training_log("mri").exists()


def test_the_token_count_of_the_limit_is_that_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    from stages.prompts.styles import chat, prompt_text

    processor = AutoProcessor.from_pretrained(layout.BASE_MODEL)
    items = json.loads(
        layout.split("modality", "oct", "train", "grouped").read_text(encoding="utf-8")
    )
    texts = [
        processor.apply_chat_template(
            chat(prompt_text(i["problem"], "no-think", "train")),
            add_generation_prompt=True,
            tokenize=False,
        )
        for i in items
    ]
    longest = max(
        len(processor(text=[t], images=[Image.open(i["image"])])["input_ids"][0])
        for t, i in zip(texts, items, strict=True)
    )
    small_params = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(
        small_params.replace("max_prompt_length: 1024", f"max_prompt_length: {longest - 1}"),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match=f"takes {longest} tokens"):
        run_train(monkeypatch, tmp_path, "oct")


def test_fewer_questions_than_a_step_takes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path, grpo={"prompts_per_device": 999})
    with pytest.raises(InputError, match="ct: 12 training questions are fewer than one step takes"):
        run_train(monkeypatch, tmp_path, "ct")


def test_an_unknown_checkpoint_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_workspace(tmp_path)
    with pytest.raises(InputError, match="unknown checkpoint 'base'"):
        run_train(monkeypatch, tmp_path, "base")


def test_a_missing_image_is_named_with_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path)
    (tmp_path / layout.images("ct") / "1.png").unlink()
    with pytest.raises(
        InputError,
        match=r"ct_1_modality: image data/images/ct/1.png is missing; run `dvc repro resize`",
    ):
        run_train(monkeypatch, tmp_path, "ct")


def show_several(root: Path, checkpoint: str = "ct") -> list[dict[str, object]]:
    """Give the second training question a second image, and the third a context; the items."""
    split = root / layout.split("modality", checkpoint, "train", "grouped")
    items: list[dict[str, object]] = json.loads(split.read_text(encoding="utf-8"))
    images = sorted({str(item["image"]) for item in items})
    items[1]["images"] = images[:2]
    items[2]["context"] = "Male, 63 years."
    split.write_text(json.dumps(items), encoding="utf-8")
    return items


@pytest.mark.parametrize("method", ["ct", "sft-ct"])
def test_a_missing_image_of_several_is_named_with_its_question(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path, sft={})
    items = show_several(tmp_path)
    items[0]["images"] = [items[0]["image"], "data/images/ct/@frames/scan/0007.png"]
    split = tmp_path / layout.split("modality", "ct", "train", "grouped")
    split.write_text(json.dumps(items), encoding="utf-8")
    message = rf"{items[0]['question_id']}: image data/images/ct/@frames/scan/0007.png is missing"
    with pytest.raises(InputError, match=message):
        run_train(monkeypatch, tmp_path, method)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("ct", {}), ("ct", {"engine": "trl", "reuse_prompt_pass": False}), ("sft-ct", {})],
)
def test_questions_about_several_images_and_with_context_are_trained_on(
    name: str, settings: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path, grpo=settings, sft={})
    show_several(tmp_path)
    run_train(monkeypatch, tmp_path, name)
    rows = list(csv.DictReader(layout.training_log(name).open(encoding="utf-8")))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert weights(tmp_path, name) != weights(tmp_path, "base")


def test_a_checkpoint_without_data_is_left_out_and_a_missing_split_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_workspace(tmp_path)
    for part in ("train", "test"):
        path = tmp_path / layout.split("task", "lesion-grading", part, "grouped")
        path.write_text("[]", encoding="utf-8")
    run_train(monkeypatch, tmp_path, "lesion-grading")
    assert "lesion-grading: left out, as " in capsys.readouterr().out
    for output in ("model", "training_log", "training_provenance"):
        assert getattr(layout, output)("lesion-grading").exists()
    assert not list(layout.model("lesion-grading").glob("*.safetensors"))
    monkeypatch.setattr(sys, "argv", ["evaluate", "lesion-grading"])
    evaluate.main()
    rows, origin = read_predictions(layout.predictions("lesion-grading"), "evaluate")
    assert len(rows) == 0
    assert origin[LEFT_OUT]
    with pytest.raises(InputError, match=r"lesion-grading was not trained, as its split has too"):
        gather("lesion-grading", load_params(), None)
    path = tmp_path / layout.split("task", "lesion-grading", "train", "grouped")
    path.unlink()
    with pytest.raises(InputError, match=r"lesion-grading/train.json is missing"):
        run_train(monkeypatch, tmp_path, "lesion-grading")


def test_an_sft_checkpoint_keeps_the_contract_and_is_tested_on_its_axis(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.root, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    folder = layout.model("sft-ct")
    facts = json.loads(layout.training_provenance("sft-ct").read_text(encoding="utf-8"))
    assert facts["params"]["sft"]["learning_rate"] == 1e-3
    assert facts["params"]["grpo"]["max_steps"] == 2, "whose budget it has"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "supervised fine-tuning on the answers alone (TRL) on the modality split `ct`" in card
    rows = list(csv.DictReader(layout.training_log("sft-ct").open(encoding="utf-8")))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(row[column] for row in rows for column in ("loss", "learning_rate", "grad_norm"))
    assert not any(
        row[column] for row in rows for column in ("reward", "kl", "completion_length")
    ), "it has none"
    assert float(rows[1]["loss"]) < float(rows[0]["loss"])
    assert not (tmp_path / layout.SCRATCH / "train" / "sft-ct").exists()
    monkeypatch.setattr(sys, "argv", ["evaluate", "sft-ct"])
    evaluate.main()
    table = pd.read_parquet(layout.predictions("sft-ct"))
    assert set(table["checkpoint"]) == {"sft-ct"}
    assert table["modality_test"].all()
    assert set(table["modality"]) == set(AXES["modality"])


@pytest.mark.parametrize("style", ["think", "think-after"])
def test_the_think_styles_train_and_evaluate(
    style: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path, images_a_modality=1, grpo={"max_completion_length": 24}, style=style)
    run_train(monkeypatch, tmp_path, "oct")
    rows = list(csv.DictReader(layout.training_log("oct").open(encoding="utf-8")))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(0 < float(row["completion_length"]) <= 24 for row in rows)
    monkeypatch.setattr(sys, "argv", ["evaluate", "oct"])
    evaluate.main()
    facts = json.loads(pq.read_schema(layout.predictions("oct")).metadata[b"provenance"])
    assert facts["params"]["prompt"]["style"] == style
    assert list(facts["weights"]) == ["model.safetensors"]
    trained = json.loads(layout.training_provenance("oct").read_text(encoding="utf-8"))
    assert trained["params"]["prompt"]["style"] == style
    assert len(pd.read_parquet(layout.predictions("oct"))) == 8 * 6


LONG = {"max_steps": 24, "num_train_epochs": 24.0, "save_steps": 1, "learning_rate": 1e-3}


def weights(root: Path, name: str = "ct") -> bytes:
    return (root / layout.model(name) / "model.safetensors").read_bytes()


def trained_alone(root: Path, name: str, server: Server, **variables: str) -> tuple[str, str]:
    """Train to the end; what the stage prints."""
    code, out, err = finish(root, "train", name, server=server, **variables)
    assert code == 0, err[-3000:]
    return out, err


def kill_while_it_saves(root: Path, after: int, server: Server) -> None:
    """Start the stage and SIGKILL it while it writes its state, at step `after` or soon after."""
    process = start(root, "train", "ct", server=server)
    scratch = root / layout.SCRATCH / "train" / "ct"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        half = [path for path in scratch.glob("*/checkpoint-*") if not (path / MANIFEST).exists()]
        if any(int(path.name.rpartition("-")[2]) >= after for path in half):
            break
        time.sleep(0.002)
    assert process.poll() is None, "ended before it could be killed"
    kill(process, server)


def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, preloaded: Server
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
        small_workspace(root, grpo=LONG)
    trained_alone(whole, "ct", preloaded)
    kill_while_it_saves(killed, after=5, server=preloaded)
    assert not (killed / layout.model("ct")).exists()
    kill_while_it_saves(killed, after=13, server=preloaded)
    _, said = trained_alone(killed, "ct", preloaded)
    resumed = re.search(r"ct: resuming from step (\d+) \(state in", said)
    assert resumed is not None
    assert int(resumed[1]) >= 12
    assert weights(whole) == weights(killed)
    log = layout.training_log("ct")
    assert (whole / log).read_bytes() == (killed / log).read_bytes()
    assert not (killed / layout.SCRATCH / "train" / "ct").exists(), (
        "the state of a finished training is removed"
    )


def test_a_state_of_other_settings_is_never_resumed(tmp_path: Path, preloaded: Server) -> None:
    small_workspace(tmp_path, grpo=LONG)
    kill_while_it_saves(tmp_path, after=3, server=preloaded)
    (old,) = (tmp_path / layout.SCRATCH / "train" / "ct").iterdir()
    params = tmp_path / "params.yaml"
    params.write_text(
        params.read_text(encoding="utf-8").replace("max_steps: 24", "max_steps: 2"),
        encoding="utf-8",
    )
    out, said = trained_alone(tmp_path, "ct", preloaded)
    assert "resuming from" not in said
    assert not old.exists()
    assert "ct: 2 steps" in out


TWO = {"max_steps": 8, "save_steps": 2, "num_generations": 4, "learning_rate": 1e-3}
SEVERAL = {PROCESSES: "2"}


def kill_a_rank(root: Path, rank: int, after: int, server: Server, name: str = "ct") -> str:
    """Start the stage on two ranks and kill one when a state is saved; the stage's output."""
    launcher = start(root, "train", name, server=server, **SEVERAL)
    deadline = time.monotonic() + 300
    while launcher.poll() is None and time.monotonic() < deadline:
        kept = [
            path.parent
            for path in (root / layout.SCRATCH).glob(f"train/{name}/*/checkpoint-*/{MANIFEST}")
        ]
        if any(int(path.name.rpartition("-")[2]) >= after for path in kept):
            break
        time.sleep(0.02)
    assert launcher.poll() is None, "ended before a process could be killed"
    ranks = [each for each in server.forks() if each.environ().get("RANK") == str(rank)]
    ranks[0].kill()
    killed = time.monotonic()
    _, said = launcher.communicate(timeout=120)
    assert launcher.returncode == ExitCode.INPUT
    assert time.monotonic() - killed < 60, (
        "the other does not wait for the timeout of thirty minutes"
    )
    return said


def test_two_processes_learn_what_one_learns_and_go_on_when_one_was_killed(
    tmp_path: Path, preloaded: Server
) -> None:
    one, two, killed = tmp_path / "one", tmp_path / "two", tmp_path / "killed"
    for root, prompts in ((one, 4), (two, 2), (killed, 2)):
        root.mkdir()
        small_workspace(root, grpo=TWO | {"prompts_per_device": prompts, "num_train_epochs": 10.0})
    trained_alone(one, "ct", preloaded)
    out, _ = trained_alone(two, "ct", preloaded, **SEVERAL)
    assert out == "ct: 8 steps on 12 questions -> models/ct\n", "said once"
    rows = [
        list(csv.DictReader((root / layout.training_log("ct")).open(encoding="utf-8")))
        for root in (one, two)
    ]
    # before the first step; later, where gradients are near zero, the size of Adam's steps is a
    # matter of rounding
    for column in ("reward", "reward_accuracy", "reward_format", "completion_length", "grad_norm"):
        assert float(rows[0][0][column]) == pytest.approx(float(rows[1][0][column]), rel=1e-3), (
            column
        )
    facts = [
        json.loads((root / layout.training_provenance("ct")).read_text(encoding="utf-8"))
        for root in (one, two)
    ]
    assert [each["processes"] for each in facts] == [1, 2]

    said = kill_a_rank(killed, rank=1, after=2, server=preloaded)
    assert "process 2 of 2 (rank 1) was killed by signal 9 (SIGKILL)" in said
    assert "Re-run the same command to resume from the last saved state" in said
    assert not (killed / layout.model("ct")).exists()
    _, said = trained_alone(killed, "ct", preloaded, **SEVERAL)
    assert re.search(r"ct: resuming from step [2468] \(state in", said)
    assert weights(two) == weights(killed), "bit for bit"
    assert (two / layout.training_log("ct")).read_bytes() == (
        killed / layout.training_log("ct")
    ).read_bytes()
    assert not (killed / layout.SCRATCH / "train" / "ct").exists()
    assert not (killed / layout.SCRATCH / "launch" / "ct").exists()


@pytest.mark.skipif(
    util.find_spec("deepspeed") is None, reason="deepspeed is not installed: the extra `gpu` has it"
)
@pytest.mark.parametrize(("way", "name"), [("zero2", "ct"), ("zero3", "ct"), ("zero2", "sft-ct")])
def test_deepspeed_goes_on_when_a_process_was_killed(
    way: str, name: str, tmp_path: Path, preloaded: Server
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        root.mkdir()
        settings = TWO | {"parallel": way, "reuse_prompt_pass": False, "num_train_epochs": 10.0}
        small_workspace(root, grpo=settings, sft={"save_steps": 2})
    trained_alone(whole, name, preloaded, **SEVERAL)
    assert "process 1 of 2 (rank 0) was killed by signal 9 (SIGKILL)" in kill_a_rank(
        killed, rank=0, after=2, server=preloaded, name=name
    )
    _, said = trained_alone(killed, name, preloaded, **SEVERAL)
    assert re.search(rf"{name}: resuming from step [2468] \(state in", said)
    assert weights(whole, name) == weights(killed, name)


def test_where_one_gpu_is_to_train_the_others_are_out_of_sight_before_cuda_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_workspace(tmp_path, grpo={"parallel": "none"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with pytest.raises(InputError, match=r"CUDA_VISIBLE_DEVICES=3, but torch .* sees no GPU"):
        run_train(monkeypatch, tmp_path, "ct")


def test_the_card_of_a_checkpoint_says_the_licence_of_its_base(trained: Trained) -> None:
    card = (trained.root / layout.model("ct") / "README.md").read_text(encoding="utf-8")
    front = load_yaml(card.split("---\n")[1], Path("front matter"))
    assert (front["license"], front["license_name"]) == ("other", "qwen-research")


def test_running_out_of_gpu_memory_says_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.grpo import scoring

    small_workspace(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(scoring, "score", full)
    with pytest.raises(
        InputError,
        match=(
            r"out of GPU memory at step 1 .*Lower grpo.prompts_per_device \(now"
            r" 2;.*grpo.num_generations \(now 2\)"
        ),
    ):
        run_train(monkeypatch, tmp_path, "ct")
    assert not layout.model("ct").exists()

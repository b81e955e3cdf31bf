"""params.yaml: what is accepted, and what a user reads when something is not."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import InputError
from stages.core.params import load_params
from stages.core.yaml_files import dump_yaml, read_yaml

REPOSITORY = Path(__file__).parents[2]


GRPO = {"axis": "modality", "images": "x"}
LORA = {"rank": 2, "alpha": 4, "dropout": 0.0, "target_modules": ["q_proj"]}
SFT = {"axis": "modality", "split": "ct", "method": "sft", "images": "x"}


@pytest.fixture
def tree() -> dict[str, Any]:
    return dict(read_yaml(REPOSITORY / "params.yaml"))


def load(tree: Any, folder: Path) -> Any:
    path = folder / "params.yaml"
    path.write_text(dump_yaml(tree), encoding="utf-8")
    return load_params(path)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split(".")
    for group in groups:
        tree = tree[group]
    if value is None and last not in tree:
        return
    tree[last] = value


def test_the_committed_params_are_valid_and_name_13_checkpoints_and_the_base() -> None:
    params = load_params(REPOSITORY / "params.yaml")
    assert len(params.checkpoints) == 13
    assert set(params.evaluations) == {"base", *params.checkpoints}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (
            "grpo.betta",
            0.1,
            [
                "grpo.betta: unknown key; did you mean 'beta'?",
                "Allowed here: engine, draft_nodes, reuse_prompt_pass,",
            ],
        ),
        ("grpoo", {}, ["grpoo: unknown key; did you mean 'grpo'?"]),
        ("grpo.learning_rate", "fast", ["grpo.learning_rate = 'fast'", "valid number"]),
        ("grpo.num_generations", 1, ["grpo.num_generations = 1", "greater than or equal to 2"]),
        ("grpo.num_generations", 4.5, ["grpo.num_generations = 4.5", "valid integer"]),
        ("grpo.max_steps", True, ["grpo.max_steps = True", "valid integer"]),
        ("grpo.rewards", {"beauty": 1.0}, ["grpo.rewards.beauty", "'accuracy' or 'format'"]),
        ("grpo.rewards", {}, ["grpo: at least one reward is needed"]),
        ("corpus.limits.max_ratio", 0, ["corpus.limits.max_ratio = 0", "greater than 0"]),
        ("splits.train_share", 1.0, ["splits.train_share = 1.0", "less than 1"]),
        (
            "splits.kind",
            "published",
            ["splits.kind = 'published'", "'grouped', 'random' or 'released'"],
        ),
        ("splits.folds", 1, ["splits.folds = 1", "greater than or equal to 2"]),
        ("splits.folds", 3, ["checkpoints: ct has 1 of the 3 folds", "as ct-fold-1"]),
        (
            "splits",
            {"kind": "random", "folds": 3},
            ["folds: only splits of kind grouped have folds, not random"],
        ),
        (
            "modalities.ct-fold-1",
            {"names": ["CT one"]},
            ["modalities.ct-fold-1: the slug has a meaning of its own"],
        ),
        ("splits.near_duplicates", 25, ["splits.near_duplicates = 25", "less than or equal to 24"]),
        ("splits.patient_patterns", ["(a"], ["'(a' is not a regular expression: missing )"]),
        (
            "splits.patient_patterns",
            ["a", "(b)"],
            ["'a' has no group: put what names the patient in brackets"],
        ),
        (
            "retrain.never_worse",
            ["ct/ct", "ct/disease-diagnosis"],
            ["'ct/disease-diagnosis' is not a cell; name a checkpoint and"],
        ),
        (
            "quarantine.max_refused_share",
            5.0,
            ["quarantine.max_refused_share = 5.0", "less than or equal to 1"],
        ),
        ("quarantine.min_refused", 0, ["quarantine.min_refused = 0", "greater than 0"]),
        ("quarantine.sets", {"Set": 2.0}, ["quarantine.sets.Set = 2.0", "less than or equal to 1"]),
        (
            "data_tests.blank_images",
            {"severity": "fatal", "limit": 0.1},
            ["severity = 'fatal'", "'warning' or 'off'"],
        ),
        (
            "data_tests.blank_images",
            {"severity": "error"},
            ["data_tests.blank_images.limit: missing"],
        ),
        (
            "data_tests.blank_image",
            {"severity": "error", "limit": 0.1},
            ["blank_image: unknown key; did you mean 'blank_images'?"],
        ),
        ("retrain.max_drift", 1.5, ["retrain.max_drift = 1.5", "less than or equal to 1"]),
        ("retrain.max_refused", 1.5, ["retrain.max_refused = 1.5", "less than or equal to 1"]),
        (
            "prompt.style",
            "thinking",
            ["prompt.style = 'thinking'", "'think', 'no-think' or 'think-after'"],
        ),
        ("base.revision", "main", ["base.revision = 'main'", "pattern"]),
        ("grpo.skip_zero_advantage", True, ["grpo", "skip_zero_advantage needs beta 0, not 0.04"]),
        (
            "grpo.gradient_checkpointing",
            True,
            ["reuse_prompt_pass excludes gradient_checkpointing: set it to false"],
        ),
        ("grpo.num_iterations", 2, ["reuse_prompt_pass excludes num_iterations above 1"]),
        ("grpo.parallel", "zero1", ["grpo.parallel = 'zero1'", "'zero2' or 'zero3'"]),
        ("grpo.parallel", "zero3", ["reuse_prompt_pass excludes parallel zero3: set it to false"]),
        ("grpo.deepspeed", "x.json", ["grpo.deepspeed: unknown key"]),
        ("grpo.timeout_minutes", 0, ["grpo.timeout_minutes = 0", "greater than 0"]),
        (
            "grpo.rollout",
            "vllm-colocate",
            ["reuse_prompt_pass excludes rollout vllm-colocate: set it to false"],
        ),
        (
            "grpo.vllm_server",
            "http://gpu1:8000",
            ["rollout policy with vllm_server http://gpu1:8000", "belongs to vllm-server"],
        ),
        ("grpo.vllm_server", "http://me:secret@gpu1", ["grpo.vllm_server", "pattern"]),
        (
            "base.attention",
            "flash_attention_2",
            ["flash_attention_2 cannot take the mask of grpo.engine shared-prefix: use auto"],
        ),
        (
            "base.attention",
            {"language": "flash_attention_2", "vision": "auto"},
            ["cannot take the mask of grpo.engine shared-prefix"],
        ),
        ("grpo.logging_steps", 7, ["save_steps 50 is not a multiple of logging_steps 7"]),
        ("grpo.max_steps", 0, ["grpo.max_steps = 0", "-1 leaves it to the epochs"]),
        (
            "grpo.lora",
            {"rank": 0, "alpha": 1, "dropout": 0.0, "target_modules": ["q_proj"]},
            ["grpo.lora.rank = 0"],
        ),
        ("resize.resample", "magic", ["resize.resample = 'magic'", "'bicubic'"]),
        (
            "checkpoints.heart",
            {"axis": "modality", "images": "x"},
            ["checkpoints.heart: no such modality", "ct, mri"],
        ),
        ("checkpoints.ct", {"axis": "task", "images": "x"}, ["checkpoints.ct: no such task"]),
        (
            "checkpoints.ct",
            {"axis": "modality", "images": "x", "grpo": {"bta": 1}},
            ["ct.grpo.bta: unknown key; did you mean 'beta'?"],
        ),
        (
            "checkpoints.ct",
            {"axis": "modality", "images": "x", "grpo": {"beta": -1.0}},
            ["checkpoints.ct.grpo.beta = -1.0"],
        ),
        (
            "checkpoints.ct",
            GRPO | {"split": "mri"},
            ["checkpoints.ct: with the split 'mri' and the method grpo it must be called mri"],
        ),
        (
            "checkpoints.ct",
            GRPO | {"split": "skin"},
            ["checkpoints.ct.split = 'skin': no such modality; allowed: ct, mri"],
        ),
        (
            "checkpoints.ct",
            GRPO | {"method": "ppo"},
            ["checkpoints.ct.method = 'ppo'", "'grpo' or 'sft'"],
        ),
        (
            "checkpoints.ct",
            GRPO | {"sft": {"save_steps": 1}},
            ["checkpoints.ct.sft: this checkpoint learns by GRPO"],
        ),
        (
            "checkpoints.sft-ct",
            SFT | {"split": "mri"},
            ["with the split 'mri' and the method sft it must be called sft-mri"],
        ),
        (
            "checkpoints.sft-ct",
            GRPO | {"method": "sft"},
            ["checkpoints.sft-ct: no such modality (say which it learns from: split)"],
        ),
        (
            "checkpoints.sft-ct",
            SFT | {"axis": "task"},
            ["checkpoints.sft-ct.split = 'ct': no such task"],
        ),
        (
            "checkpoints.sft-ct",
            SFT | {"sft": {"lerning_rate": 1.0}},
            ["sft-ct.sft.lerning_rate: unknown key; did you mean"],
        ),
        (
            "checkpoints.sft-ct",
            SFT | {"sft": {"warmup_share": 1.0}},
            ["checkpoints.sft-ct.sft.warmup_share = 1.0"],
        ),
        (
            "checkpoints.sft-ct",
            SFT | {"grpo": {"logging_steps": 7, "save_steps": 0}},
            ["sft-ct: sft.save_steps 50 is not a multiple of"],
        ),
        (
            "checkpoints.sft-ct",
            SFT | {"grpo": {"max_steps": 7}},
            ["sft-ct: grpo.max_steps is 7, but 180 for checkpoints.ct"],
        ),
        ("sft.learning_rate", 0.0, ["sft.learning_rate = 0.0", "greater than 0"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_what_is_allowed(
    tree: dict[str, Any], tmp_path: Path, key: str, value: Any, expected: list[str]
) -> None:
    put(tree, key, tree[key] | value if key in tree and isinstance(value, dict) else value)
    if key.startswith("checkpoints.sft"):
        tree["evaluations"]["sft-ct"] = {"axis": "modality"}
    with pytest.raises(InputError) as error:
        load(tree, tmp_path)
    for words in expected:
        assert words in str(error.value)


def test_shortcuts_of_the_engine_do_not_bind_trls(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["grpo"] |= {"engine": "trl", "num_iterations": 2, "gradient_checkpointing": True}
    assert load(tree, tmp_path).grpo.reuse_prompt_pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parallel": "zero3", "lora": LORA}, "lora excludes parallel zero3"),
        ({"parallel": "zero3", "vision_cache_mb": 1}, "vision_cache_mb excludes parallel zero3"),
        (
            {"rollout": "vllm-server"},
            (
                "rollout vllm-server with vllm_server None: the address belongs to vllm-server, and"
                " it needs one"
            ),
        ),
    ],
)
def test_settings_that_cannot_go_together_are_refused(
    tree: dict[str, Any], tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    tree["grpo"] |= {"reuse_prompt_pass": False} | settings
    with pytest.raises(InputError, match=said) as error:
        load(tree, tmp_path)
    assert "adam_beta2" not in str(error.value), "what is right is not told"


@pytest.mark.parametrize("attention", ["auto", {"language": "sdpa", "vision": "flash_attention_2"}])
def test_each_tower_may_have_an_attention_of_its_own(
    tree: dict[str, Any], tmp_path: Path, attention: Any
) -> None:
    tree["base"]["attention"] = attention
    assert load(tree, tmp_path)


def test_a_missing_setting_is_named(tree: dict[str, Any], tmp_path: Path) -> None:
    del tree["grpo"]["beta"]
    with pytest.raises(InputError, match=r"grpo\.beta: missing"):
        load(tree, tmp_path)


def test_all_problems_are_told_at_once(tree: dict[str, Any], tmp_path: Path) -> None:
    put(tree, "grpo.beta", "x")
    put(tree, "resize.size", 0)
    with pytest.raises(InputError) as error:
        load(tree, tmp_path)
    assert "grpo.beta" in str(error.value)
    assert "resize.size" in str(error.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "a: 1\na: 2"])
def test_a_file_that_is_no_settings_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="params.yaml"):
        load_params(path)


def test_evaluations_must_be_the_checkpoints_and_the_base(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    del tree["evaluations"]["ct"]
    with pytest.raises(InputError, match="not on both sides: ct"):
        load(tree, tmp_path)


def test_an_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    text = re.sub(
        r"learning_rate: \S+",
        "learning_rate: 1e-6",
        (REPOSITORY / "params.yaml").read_text(encoding="utf-8"),
    )
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_params(path).grpo.learning_rate == 1e-6


def test_a_data_test_is_switched_off_by_a_plain_off(tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(
        text.replace("letter_bias: {severity: warning", "letter_bias: {severity: off"),
        encoding="utf-8",
    )
    assert load_params(path).data_tests.letter_bias.severity == "off"


def test_a_checkpoints_own_settings_win(tree: dict[str, Any], tmp_path: Path) -> None:
    put(tree, "checkpoints.ct.grpo", {"max_steps": 7})
    params = load(tree, tmp_path)
    assert params.grpo_for("ct").max_steps == 7
    assert params.grpo_for("mri").max_steps == params.grpo.max_steps


@pytest.mark.parametrize("ask", ["require_checkpoint", "require_evaluation"])
def test_an_unknown_checkpoint_is_answered_with_the_known_ones(ask: str) -> None:
    params = load_params(REPOSITORY / "params.yaml")
    with pytest.raises(
        InputError,
        match=r"unknown checkpoint 'fundas'; did you mean 'fundus'\? params.yaml knows: ",
    ):
        getattr(params, ask)("fundas")


def test_every_entry_writes_out_what_dvc_reads() -> None:
    """DVC's interpolation knows no defaults."""
    tree = read_yaml(REPOSITORY / "params.yaml")
    for name, entry in tree["checkpoints"].items():
        assert {"axis", "split", "method", "images"} <= set(entry), name


def test_one_line_switches_the_sft_baselines_on(tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    told = re.search(r"All on: sed -i '(.*)' params.yaml", text)
    assert told
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    subprocess.run(["sed", "-i", told.group(1), str(path)], check=True)
    params = load_params(path)
    assert [name for name, entry in params.checkpoints.items() if entry.method == "sft"] == [
        f"sft-{name}" for name in list(params.checkpoints)[:13]
    ]
    assert set(params.evaluations) == {"base", *params.checkpoints}
    assert all(
        params.sft_for(name) == params.sft
        for name, entry in params.checkpoints.items()
        if entry.method == "sft"
    )


def test_a_split_left_out_is_the_name(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["checkpoints"]["ct"] = {"axis": "modality", "images": "x"}
    assert load(tree, tmp_path).require_checkpoint("ct").split == "ct"


def test_an_sft_checkpoint_takes_the_budget_of_its_twin_and_its_own_settings(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    put(tree, "checkpoints.ct.grpo", {"max_steps": 7})
    tree["evaluations"]["sft-ct"] = {"axis": "modality"}
    tree["checkpoints"]["sft-ct"] = SFT | {
        "grpo": {"max_steps": 7, "beta": 0.1},
        "sft": {"learning_rate": 1.0},
    }
    params = load(tree, tmp_path)
    assert params.grpo_for("sft-ct").max_steps == 7
    assert params.sft_for("sft-ct").learning_rate == 1.0

"""Stage prior on made-up splits: the library's numbers, whole or not at all, bad splits refused."""

import json
import shutil
from pathlib import Path

import pytest

from stages import prior
from stages.core import layout
from stages.core.errors import InputError
from stages.core.outputs import write_json
from stages.corpus.dataset.split_files import read_split
from stages.scoring.blind_baseline import RULES, read_blind_baseline
from stages.scoring.prior import blind_credits, blind_score, fit_prior
from stages.scoring.questions import as_questions, read_questions
from stages.taxonomy import fold_slug
from tests.conftest import RunStage
from tests.fakes import write_project
from tests.omnimedvqa import AXES


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project to be read only."""
    root = tmp_path_factory.mktemp("written")
    write_project(root, per_cell=8, checkpoints=())
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same to be changed."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_split_has_the_blind_baseline_that_the_library_finds(
    root: Path, run: RunStage, capsys: pytest.CaptureFixture[str]
) -> None:
    run(prior)
    assert (
        f"prior: {sum(map(len, AXES.values()))} splits, grouped -> data/prior"
        in capsys.readouterr().out
    )
    for axis, slugs in AXES.items():
        trains = {
            slug: read_questions(layout.split(axis, slug, "train", "grouped")) for slug in slugs
        }
        for slug in slugs:
            blind_baseline, test = (
                read_blind_baseline(layout.prior(axis, slug)),
                read_questions(layout.split(axis, slug, "test", "grouped")),
            )
            assert (
                blind_baseline.axis,
                blind_baseline.split,
                blind_baseline.kind,
                blind_baseline.train,
                blind_baseline.n,
            ) == (
                axis,
                slug,
                "grouped",
                len(trains[slug]),
                len(test),
            )
            for name in RULES:
                rule, exact = blind_baseline.rules[name], name == "as_written"
                found = blind_score(fit_prior(trains[slug], exact=exact), test)
                assert (rule.accuracy, rule.low, rule.high) == (found.accuracy, *found.interval)
                together = [question for train in trains.values() for question in train]
                assert rule.pooled == blind_score(fit_prior(together, exact=exact), test).accuracy
                assert list(rule.credit) == [question.question_id for question in test]
                chosen = [rule.credit[each] for each in rule.balanced]
                assert sum(chosen) == pytest.approx(
                    sum(1 / len(q.options) for q in test if q.question_id in rule.balanced)
                )


def test_files_say_where_they_come_from_and_are_the_same_twice(root: Path, run: RunStage) -> None:
    contents = []
    for _ in range(2):
        run(prior)
        contents.append({path: path.read_bytes() for path in sorted(layout.PRIOR.rglob("*.json"))})
    assert contents[0] == contents[1]
    assert json.loads(layout.prior("modality", "ct").read_text(encoding="utf-8"))["provenance"][
        "params"
    ] == {"splits.kind": "grouped"}


def test_the_kind_of_split_in_use_is_the_one_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: RunStage
) -> None:
    write_project(tmp_path, per_cell=8, kind="random")
    monkeypatch.chdir(tmp_path)
    run(prior)
    blind_baseline = read_blind_baseline(layout.prior("task", "lesion-grading"))
    test = read_questions(layout.split("task", "lesion-grading", "test", "random"))
    assert (blind_baseline.kind, list(blind_baseline.rules["normalised"].credit)) == (
        "random",
        [question.question_id for question in test],
    )


@pytest.mark.parametrize("spoil", ["missing", "no gold", "empty"])
def test_a_bad_split_is_refused_by_name_and_the_blind_baselines_there_were_stay(
    root: Path, run: RunStage, spoil: str
) -> None:
    run(prior)
    before = layout.prior("modality", "ct").read_bytes()
    path = layout.split("task", "lesion-grading", "test", "grouped")
    if spoil == "missing":
        path.unlink()
    elif spoil == "empty":
        write_json(path, [])
    else:
        write_json(
            path,
            [item | {"solution": "C"} for item in json.loads(path.read_text(encoding="utf-8"))],
        )
    with pytest.raises(InputError, match=r"lesion-grading/test\.json"):
        run(prior)
    assert layout.prior("modality", "ct").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"rules": 3}'])
def test_a_file_that_is_no_blind_baseline_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ct.json"
    with pytest.raises(InputError, match=r"ct\.json is missing: run `dvc repro prior`"):
        read_blind_baseline(path)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(
        InputError,
        match=r"ct\.json holds no blind baseline .*: delete it and run `dvc repro --force prior`",
    ):
        read_blind_baseline(path)


def test_a_blind_baseline_that_lost_questions_is_refused(root: Path, run: RunStage) -> None:
    run(prior)
    path = layout.prior("modality", "ct")
    found = json.loads(path.read_text(encoding="utf-8"))
    found["rules"]["as_written"]["credit"].popitem()
    write_json(path, found)
    with pytest.raises(InputError, match="its credits are not those of"):
        read_blind_baseline(path)


def test_the_baseline_of_folds_answers_each_question_by_the_rule_of_its_fold(
    root: Path, run: RunStage
) -> None:
    expected: dict[str, float] = {}
    everything = read_split(layout.split("modality", "ct", "test", "grouped"))
    for axis, slugs in AXES.items():
        for slug in slugs:
            tested = read_split(layout.split(axis, slug, "test", "grouped"))
            write_json(layout.split(axis, slug, "train", "grouped"), [])
            for number in (1, 2):
                for part, offset in (("train", number), ("test", number - 1)):
                    path = layout.split(axis, fold_slug(slug, number), part, "grouped")
                    write_json(path, tested[offset % 2 :: 2])
    for offset in (0, 1):
        train, test = (as_questions(everything[at::2], "ct") for at in ((offset + 1) % 2, offset))
        expected |= blind_credits(fit_prior(train, exact=True), test)
    run(prior)
    found = read_blind_baseline(layout.prior("modality", "ct"))
    assert found.n == len(everything)
    assert found.rules["as_written"].credit == expected
    assert found.rules["as_written"].accuracy == pytest.approx(
        sum(expected.values()) / len(everything)
    )
    assert not layout.prior("modality", "ct-fold-1").exists()

"""Paths of all inputs and outputs, relative to the project's root, as in dvc.yaml."""

from __future__ import annotations

from pathlib import Path

PARAMS = Path("params.yaml")
DATA_DVC = Path("data.dvc")
RELEASED_DVC = Path("infra/released.dvc")
"""Imports the split files of others that a profile names."""
DATA = Path("data")
SPLITS = DATA / "splits"
LEAKS = SPLITS / "leaks.json"
"""How many test questions of each kind of split are known from training (stage splits)."""
LEFT_OUT = SPLITS / "left-out.json"
"""Splits of each kind with too little data (stage splits)."""
RELEASED = DATA / "released.json"
"""What of the split files of others joined the corpus (stage splits)."""
QUARANTINE = DATA / "quarantine"
LOCATIONS = DATA / "locations.parquet"
"""File and line of each usable record in the corpus (stage download)."""
DATA_TESTS = DATA / "data-tests.json"
"""What the tests of the corpus found (stage splits)."""
PRIOR = DATA / "prior"
MODELS = Path("models")
BASE_MODEL = MODELS / "base"
TRAINING = Path("training")
PREDICTIONS = Path("predictions")
REPORT = Path("report")
REBUILT = REPORT / "rebuilt"
"""Reports from predictions alone (`med-r1 report --predictions`), outside the pipeline's."""
SCRATCH = Path(".scratch")
"""Untracked: what may be lost without losing a result."""
ANSWER_CACHE = SCRATCH / "answers"
"""Generated answers, also of earlier evaluations (stage evaluate)."""
FLOWS = SCRATCH / "flows"
"""State of the flows: locks, records of running stages, measured times."""
PROFILES = Path("infra/profiles")
"""Shipped profiles, and those of a person's own."""


def corpus(modality: str) -> Path:
    """Folder of `corpus_records` and `corpus_images` of one modality (stage download)."""
    return DATA / "corpus" / modality


def corpus_records(modality: str) -> Path:
    """Validated records of one modality, one per line, sorted by question_id (stage download)."""
    return corpus(modality) / "records.jsonl"


def corpus_images(modality: str) -> Path:
    """Image files of these records, one per line.

    `file`, `sha256`, `size` in bytes (stage download).
    """
    return corpus(modality) / "images.jsonl"


def images(modality: str) -> Path:
    """Resized images of one modality (stage resize)."""
    return DATA / "images" / modality


def records(modality: str) -> Path:
    """Records of one modality with decodable images, one per line, with metadata (stage resize)."""
    return DATA / "records" / f"{modality}.jsonl"


def left_out(name: str) -> Path:
    """In the folder of a checkpoint that is not trained, as its split has too little data."""
    return model(name) / "left-out.json"


def split_slugs(axis: str, kind: str, root: Path = Path()) -> list[str]:
    """The modalities or question types with splits of one kind in a project, sorted."""
    return sorted(path.name for path in (root / SPLITS / kind / axis).glob("*") if path.is_dir())


def split(axis: str, slug: str, part: str, kind: str) -> Path:
    """One split file (stage splits).

    Axis "modality" or "task", part "train" or "test", kind "grouped", "random" or "released".
    """
    return SPLITS / kind / axis / slug / f"{part}.json"


def prior(axis: str, slug: str) -> Path:
    """Blind baseline of one test split, of the kind of split in use (stage prior)."""
    return PRIOR / axis / f"{slug}.json"


def model(checkpoint: str) -> Path:
    """The Hugging Face directory of one checkpoint, or of the base (stages train and base)."""
    return MODELS / checkpoint


def training_log(checkpoint: str) -> Path:
    """One row a step: loss, rewards, KL, completion length (stage train)."""
    return TRAINING / f"{checkpoint}.csv"


def training_provenance(checkpoint: str) -> Path:
    """Commit, settings and versions behind a checkpoint or the base.

    Not inside the model's folder, so that no later stage depends on it.
    """
    return TRAINING / f"{checkpoint}.provenance.json"


def predictions(checkpoint: str) -> Path:
    """One row a question (stage evaluate)."""
    return PREDICTIONS / f"{checkpoint}.parquet"

"""Profile schema: a YAML file of differences from the sample's settings and .dvc files, and sizes.

Shipped profiles are in infra/profiles. `extends` names the profile that it differs from, by default
`sample`, which changes no parameter: params.yaml as committed.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import Field, ValidationError, model_validator

from stages.core import layout
from stages.core.dvc_files import DvcFile, first_problem
from stages.core.errors import InputError
from stages.core.params import read_settings
from stages.core.settings.explain import explain
from stages.core.settings.group import PositiveFloat, PositiveInt, SettingsGroup, Share
from stages.core.yaml_files import dump_yaml

FOLDER: Final = layout.PROFILES
SAMPLE: Final = "sample"


class Scale(SettingsGroup):
    """Size of a corpus, for estimates only."""

    questions: PositiveInt
    images: PositiveInt
    """Stored ones: of a volume, the frames that are shown."""
    images_per_question: Annotated[float, Field(ge=1, le=64)] = 1.0
    """Mean over the questions that are not about a volume."""
    most_images_per_question: Annotated[int, Field(ge=1, le=64)] = 1
    several_share: Share | None = None
    """Share of these questions that are about several images; null: unknown, estimated as if they
    had two each.
    """
    volume_share: Share = 0.0
    """Share of the questions that are about a volume, of which `volume.frames` are shown."""
    context_share: Share = 0.0
    """Share of the questions that have a context."""

    @model_validator(mode="after")
    def _no_mean_is_above_the_most(self) -> Self:
        if self.images_per_question > self.most_images_per_question:
            raise ValueError(
                f"most_images_per_question: {self.most_images_per_question} is less than the mean,"
                f" images_per_question: {self.images_per_question:g}"
            )
        further = self.images_per_question - 1
        most = (self.most_images_per_question - 1) * (
            1.0 if self.several_share is None else self.several_share
        )
        if further > most + 1e-9:
            raise ValueError(
                f"several_share: {self.several_share} of the questions, with at most"
                f" {self.most_images_per_question} images, have not images_per_question:"
                f" {self.images_per_question:g} on average"
            )
        return self


class Model(SettingsGroup):
    """What `base.source` is at `base.revision`; all but the hashes is for estimates only."""

    size: PositiveInt
    """Bytes of all files that are fetched."""
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=dict
    )
    """Weight file -> its hash, as far as known; the revision alone pins the others."""
    parameters: PositiveInt
    vision_parameters: PositiveInt
    """Of them, those of the vision tower."""
    embedding_parameters: PositiveInt | None = None
    """Of them, those of the token embeddings, which the reference keeps in float32; null: unknown,
    estimated as if it kept all of its weights so.
    """
    vocabulary: PositiveInt
    layers: PositiveInt
    prompt_tflop: PositiveFloat
    """10^12 FLOPs of a forward pass over an image and its prompt."""
    token_gflop: PositiveFloat
    """10^9 FLOPs of a forward pass over a token of a completion, including logits."""
    prompt_mb: PositiveFloat
    """10^6 bytes of activations that a forward pass over an image and its prompt stores for the
    backward pass, with float32 weights in bfloat16 autocast (`python -m benchmarks.activations`).
    """
    token_mb: PositiveFloat
    """The same for a token of a completion."""


class Profile(SettingsGroup):
    """A profile with all it extends."""

    about: str = ""
    extends: str = SAMPLE
    data: dict[str, Any] | None = None
    """Content of data.dvc; `meta.sha256` and `meta.size` are those of the archive. None leaves
    data.dvc as it is.
    """
    released: dict[str, Any] | None = None
    """Content of infra/released.dvc, an import of split files for `splits.kind: released`. None
    removes the file if a profile wrote it.
    """
    scale: Scale | None = None
    model: Model | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    """Keys of params.yaml, nested as there, that differ from the sample."""
    groups: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Groups of params.yaml that are replaced as a whole, such as the modalities of another corpus.
    """


def load_profile(name: str, folder: Path = FOLDER) -> tuple[Path, Profile]:
    """The file of a profile, by name or path, and the profile with inherited values filled in.

    InputError naming the file if it is missing, is not a profile, or extends itself.
    """
    return _load(name, folder, [])


def merge(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A tree with changes: groups are merged key by key, anything else is replaced."""
    result = dict(tree)
    for key, new in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            result[key] = merge(old, new)
        else:
            result[key] = new
    return result


def _load(name: str, folder: Path, extending: list[Path]) -> tuple[Path, Profile]:
    """`extending`: the files that lead here by `extends`, the nearest last."""
    path = _find(name, folder, extending)
    if path.resolve() in extending:
        chain = " and ".join(map(str, extending))
        raise InputError(f"{path}: extends itself, through {chain}: remove one `extends`")
    own = _read(path)
    if path.stem == SAMPLE and path.parent == folder:
        return path, own
    # a path is relative to the file that names it
    relative = path.parent / own.extends
    base_name = str(relative) if relative.is_file() else own.extends
    _, parent = _load(base_name, folder, [*extending, path.resolve()])
    # sizes of another corpus or model are not inherited
    same_data = "data" not in own.model_fields_set
    same_model = not {"source", "revision"} & set(own.params.get("base") or {})
    return path, Profile(
        about=own.about or parent.about,
        extends=own.extends,
        data=parent.data if same_data else own.data,
        released=parent.released if "released" not in own.model_fields_set else own.released,
        scale=parent.scale if same_data and "scale" not in own.model_fields_set else own.scale,
        model=parent.model if same_model and "model" not in own.model_fields_set else own.model,
        params=merge(parent.params, own.params),
        groups=parent.groups | own.groups,
    )


def _find(name: str, folder: Path, extending: list[Path]) -> Path:
    for path in (folder / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    similar = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {similar[0]!r}?" if similar else "."
    where = f"{extending[-1]}: extends = {name!r}: " if extending else ""
    raise InputError(
        f"{where}no profile and no file {name!r}{hint} Profiles in {folder}/:"
        f" {', '.join(known) or 'none'}; or pass a YAML file"
    )


def _read(path: Path) -> Profile:
    tree = read_settings(path)
    try:
        profile = Profile.model_validate(tree)
    except ValidationError as error:
        lines = [f"{path} is not a profile:", *explain(error, "", Profile, tree)]
        raise InputError("\n       ".join(lines)) from error
    for name, content in (("data", profile.data), ("released", profile.released)):
        if content is not None:
            _check_import(path, name, content)
    return profile


def _check_import(path: Path, name: str, data: dict[str, Any]) -> None:
    """InputError unless the key `name` has a .dvc file that imports one file or folder."""
    try:
        file = DvcFile.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path}: {name}.{first_problem(error)}") from error
    if len(file.deps) != 1 or len(file.outs) != 1:
        raise InputError(
            f"{path}: {name} must have one path in `deps`, the source, and one in `outs`, the"
            f" target; not\n{dump_yaml(data).strip()}"
        )
    digest = file.meta.get("sha256")
    if digest is None:
        return
    if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
        raise InputError(
            f"{path}: {name}.meta.sha256 = {digest!r}: 64 hex digits are a SHA-256; remove it if"
            " unknown"
        )

"""Profile schema: a YAML file of differences from the sample's params.yaml and data.dvc, and sizes.

Shipped ones lie in infra/profiles. `extends` names the profile that it differs from; without one
that is `sample`, which changes no parameter: params.yaml as it is committed.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from stages.core.errors import InputError
from stages.core.params import explain, read_settings
from stages.core.settings.group import PositiveFloat, PositiveInt, SettingsGroup
from stages.core.yaml_files import dump_yaml

FOLDER: Final = Path("infra/profiles")
SAMPLE: Final = "sample"


class Scale(SettingsGroup):
    """How large a corpus is, for estimates alone."""

    questions: PositiveInt
    images: PositiveInt


class Model(SettingsGroup):
    """What `base.source` is at `base.revision`; all but the hashes is for estimates alone."""

    size: PositiveInt
    """Bytes of all files that are fetched."""
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=dict
    )
    """File of weights -> its hash, as far as it is known; else the revision alone pins it."""
    parameters: PositiveInt
    vision_parameters: PositiveInt
    """Of them, those of the vision tower."""
    vocabulary: PositiveInt
    layers: PositiveInt
    prompt_tflop: PositiveFloat
    """10^12 FLOPs of a forward pass over an image and its prompt."""
    token_gflop: PositiveFloat
    """10^9 FLOPs of a forward pass over a token of a completion, logits among them."""
    prompt_mb: PositiveFloat
    """10^6 bytes of activations that a forward pass over an image and its prompt keeps for its
    backward pass, in bfloat16.
    """
    token_mb: PositiveFloat
    """The same of a token of a completion."""


class Profile(SettingsGroup):
    """A profile with all it extends."""

    about: str = ""
    extends: str = SAMPLE
    data: dict[str, Any] | None = None
    """What data.dvc holds, in DVC's words; `meta.sha256` and `meta.size` are those of the archive.
    null leaves data.dvc as it is.
    """
    scale: Scale | None = None
    model: Model | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    """Keys of params.yaml, nested as there, that are other than in the sample."""


def load_profile(name: str, folder: Path = FOLDER) -> tuple[Path, Profile]:
    """The file of a profile, by name or path, and the profile with inherited values filled in.

    Raises InputError naming the file if it is not there, is not a profile, or extends itself.
    """
    return _load(name, folder, [])


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A tree with changes: groups are merged key by key, anything else is replaced."""
    result = dict(tree)
    for key, value in changes.items():
        before = result.get(key)
        result[key] = (
            merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
        )
    return result


def _load(name: str, folder: Path, above: list[Path]) -> tuple[Path, Profile]:
    path = _find(name, folder, above)
    if path.resolve() in above:
        raise InputError(
            f"{path}: extends itself, through {' and '.join(str(each) for each in above)}: take one"
            " `extends` out"
        )
    own = _read(path)
    if path.stem == SAMPLE and path.parent == folder:
        return path, own
    # a path is meant from the file that names it
    beside = path.parent / own.extends
    _, base = _load(
        str(beside) if beside.is_file() else own.extends, folder, [*above, path.resolve()]
    )
    present = own.model_fields_set
    return path, Profile(
        about=own.about or base.about,
        extends=own.extends,
        data=own.data if "data" in present else base.data,
        # what is known of another corpus or model says nothing of ours
        scale=own.scale if "scale" in present or "data" in present else base.scale,
        model=(
            own.model
            if "model" in present or {"source", "revision"} & set(own.params.get("base") or {})
            else base.model
        ),
        params=merged(base.params, own.params),
    )


def _find(name: str, folder: Path, above: list[Path]) -> Path:
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    close = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    who = f"{above[-1]}: extends = {name!r}: " if above else ""
    raise InputError(
        f"{who}no profile and no file {name!r}{hint or '.'} Profiles in {folder}/:"
        f" {', '.join(known) or 'none'}; or give a YAML file"
    )


def _read(path: Path) -> Profile:
    tree = read_settings(path)
    try:
        profile = Profile.model_validate(tree)
    except ValidationError as error:
        raise InputError(
            "\n       ".join([f"{path} is not a profile:", *explain(error, "", Profile, tree)])
        ) from error
    _check_data(path, profile.data)
    return profile


def _check_data(path: Path, data: dict[str, Any] | None) -> None:
    """Refuse what would be no import of one corpus."""
    if data is None:
        return
    try:
        (dep,), (out,) = data["deps"], data["outs"]
        usable = all(isinstance(each["path"], str) for each in (dep, out))
    except (KeyError, TypeError, ValueError):
        usable = False
    if not usable:
        content = dump_yaml(data).strip()
        raise InputError(
            f"{path}: data must hold one path in `deps`, the source, and one in `outs`, where it"
            f" goes; not\n{content}"
        )
    digest = (data.get("meta") or {}).get("sha256")
    if digest is not None and not (
        isinstance(digest, str) and len(digest) == 64 and set(digest) <= set("0123456789abcdef")
    ):
        raise InputError(
            f"{path}: data.meta.sha256 = {digest!r}: 64 hex digits are a SHA-256; leave it out if"
            " it is not known"
        )

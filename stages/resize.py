"""Stage `resize@<modality>`: every picture of a modality decoded once, as an RGB PNG of the size the policies see, in shards.

    python -m stages.resize ct

A picture that cannot be decoded sends each of its records to quarantine; the others get `image` (the path by which
stages/corpus/store.py opens it), `source_size` (width and height as seen, so that enlarged pictures can be told),
`source_mode`, `brightness`, and the hashes by which stage splits finds copies, `pixel_hash` and `perceptual_hash`.

What was made before of the same bytes by the same settings is taken from a cache outside of DVC's outputs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

from stages import layout
from stages.cli import run_stage
from stages.corpus.archive import IMAGES, DamagedMemberError
from stages.corpus.hashes import perceptual_hash, pixel_hash
from stages.corpus.image_cache import ImageCache, Known
from stages.corpus.images import DECODER, Decoded, ImageError, decode, encode
from stages.corpus.light import brightness
from stages.corpus.modalities import MODALITIES
from stages.corpus.quarantine import write_quarantine
from stages.corpus.reasons import Reason
from stages.corpus.records import read_kept, refuse
from stages.corpus.shards import cut, shard_name, write_shard
from stages.corpus.source import Corpus, open_corpus
from stages.corpus.thresholds import check_refused
from stages.errors import InputError
from stages.outputs import read_json, whole_directory, write_json
from stages.params import Resize, load_params
from stages.progress import counted
from stages.provenance import provenance

_Fact = dict[str, Any] | ImageError
"""What the records of a picture get to know of it, or why it cannot be used."""

CACHE: Final = layout.SCRATCH / "images"

_REMEDY = "run `dvc repro download`"
_AHEAD: Final = 4
"""Pictures that are read and decoded ahead of the one that is written next, for each core."""


def main() -> None:
    """Write data/images/<modality>, data/records/<modality>.json and data/quarantine/resize/<modality>.parquet."""
    arguments = argparse.ArgumentParser(prog="python -m stages.resize", description=__doc__)
    arguments.add_argument("modality", help=", ".join(MODALITIES))
    slug = arguments.parse_args().modality
    if slug not in MODALITIES:
        raise InputError(f"unknown modality {slug!r}; known: {', '.join(MODALITIES)}")
    params = load_params()
    settings = params.resize
    records = read_kept(layout.corpus(slug) / "records.json", _REMEDY)
    known = read_json(layout.corpus(slug) / "images.json", _REMEDY)
    path = Path(params.corpus.archive)
    if not path.exists():
        raise InputError(f"{path} (corpus.archive), in which the images lie, is missing: run `dvc pull data.dvc`")
    names = sorted({record.image_path for record in records})
    with (
        open_corpus(path, params.corpus.limits) as corpus,
        closing(ImageCache(CACHE, round(params.cache.images_gb * 1e9))) as cache,
        whole_directory(layout.images(slug)) as folder,
    ):
        keys = {name: _key(known[name]["sha256"], settings) for name in names}
        maker = _Maker(slug, partial(_fetch, corpus, known), keys, settings, cache)
        facts = maker.make(folder)
    kept, rows = [], []
    for record in records:
        fact = facts[record.image_path]
        if isinstance(fact, ImageError):
            rows.append(refuse(record, record.image_path, f"the image cannot be used: {fact}", fact.reason))
        else:
            kept.append({**record.fields, "image": f"{layout.images(slug).as_posix()}/{_png_name(record.image_path)}", **fact})
    write_json(layout.records(slug), kept)
    account = layout.QUARANTINE / "resize" / f"{slug}.parquet"
    sets = [record["dataset"] for record in kept]
    taken = write_quarantine(account, f"resize@{slug}", len(records), sets, rows, provenance({"resize": settings}))
    check_refused(taken, params.quarantine, account, str(layout.corpus(slug)))
    print(
        f"resize {slug}: read {len(records)} records of {len(facts)} images ({maker.fresh} of them made anew), kept {len(kept)}, "
        f"quarantined {len(rows)}"
    )


def _png_name(image_path: str) -> str:
    """Images/a/b.jpg -> a/b.jpg.png: the old suffix stays, because a/b.jpg and a/b.bmp may be two pictures."""
    return f"{image_path.removeprefix(IMAGES)}.png"


def _key(sha256: str, settings: Resize) -> str:
    """What decides a resized picture: the bytes it is made from, the settings, and what decodes it."""
    return hashlib.sha256(f"{sha256} {json.dumps(settings.model_dump(mode='json'), sort_keys=True)} {DECODER}".encode()).hexdigest()


def _fetch(corpus: Corpus, known: Mapping[str, Mapping[str, Any]], name: str) -> bytes:
    """The picture's bytes, which are those that stage download saw."""
    other = f"{corpus.path}: {name!r} is not the picture that stage download read there: {_REMEDY}"
    try:
        content = corpus.fetch(name)
    except (KeyError, DamagedMemberError) as error:
        raise InputError(other) from error
    if hashlib.sha256(content).hexdigest() != known[name]["sha256"]:
        raise InputError(other)
    return content


class _Maker:
    """Makes the shards of a modality: takes what the cache has, decodes the rest on all cores, a few pictures ahead of what is written."""

    def __init__(self, slug: str, fetch: Callable[[str], bytes], keys: Mapping[str, str], settings: Resize, cache: ImageCache) -> None:
        """`fetch` gives the bytes of a picture, `keys` what decides the result, by its path in the corpus."""
        self._slug, self._fetch, self._keys, self._settings, self._cache = slug, fetch, keys, settings, cache
        self._known = cache.known(sorted(set(keys.values())))
        self.fresh = 0

    def make(self, folder: Path) -> dict[str, _Fact]:
        """Write the shards of all pictures into `folder`; a fact for each."""
        facts: dict[str, _Fact] = {}
        left = []
        for shard in cut(sorted(self._keys)):
            taken = self._take(shard, folder)
            facts |= taken or {}
            left += [] if taken else [shard]
        # libvips and Pillow decode, resize and encode without the interpreter's lock
        pool = ThreadPoolExecutor(os.cpu_count())
        try:
            names = [name for shard in left for name in shard]
            made = counted(self._in_order(names, pool), len(names), self._slug, "image")
            for shard in left:
                facts |= self._write(islice(made, len(shard)), folder)
        finally:
            pool.shutdown(cancel_futures=True)
        return facts

    def _take(self, shard: Sequence[str], folder: Path) -> dict[str, _Fact] | None:
        """The facts of a shard that could be taken whole from the cache; None if it could not."""
        known = {name: self._known.get(self._keys[name]) for name in shard}
        facts = {name: _recall(each) for name, each in known.items() if each}
        if len(facts) < len(shard):
            return None
        name = self._name(facts)
        return facts if name is None or self._cache.take(name, folder / name) else None

    def _name(self, facts: Mapping[str, _Fact]) -> str | None:
        """The name of the shard of these pictures; None if none can be used."""
        members = [(_png_name(name), self._keys[name]) for name, fact in facts.items() if not isinstance(fact, ImageError)]
        return shard_name(members) if members else None

    def _in_order(self, names: Iterable[str], pool: ThreadPoolExecutor) -> Iterator[tuple[str, _Fact, bytes]]:
        """Pictures as they are made, in the order of their names, so few ahead that memory does not grow with their number."""
        waiting: deque[tuple[str, Future[tuple[_Fact, bytes]]]] = deque()
        for name in names:
            waiting.append((name, pool.submit(self._one, name)))
            if len(waiting) > _AHEAD * (os.cpu_count() or 1):
                done, future = waiting.popleft()
                yield done, *future.result()
        for done, future in waiting:
            yield done, *future.result()

    def _one(self, name: str) -> tuple[_Fact, bytes]:
        """A picture's fact and file: from the cache, or decoded."""
        if known := self._known.get(self._keys[name]):
            fact = _recall(known)
            if known.shard is None:
                return fact, b""
            if content := self._cache.read(known):
                return fact, content
        self.fresh += 1
        try:
            picture = decode(self._fetch(name), self._settings)
        except ImageError as error:
            return error, b""
        return _facts(picture), encode(picture.image)

    def _write(self, made: Iterable[tuple[str, _Fact, bytes]], folder: Path) -> dict[str, _Fact]:
        """One shard, as its pictures come, and the same to the cache; their facts."""
        facts: dict[str, _Fact] = {}

        def members() -> Iterator[tuple[str, bytes]]:
            for name, fact, content in made:
                facts[name] = fact
                if not isinstance(fact, ImageError):
                    yield _png_name(name), content

        part = folder / "part"
        write_shard(part, members())
        if (name := self._name(facts)) is None:
            part.unlink()
        else:
            shard = part.rename(folder / name)
            kept = [(self._keys[each], _png_name(each), fact) for each, fact in facts.items() if not isinstance(fact, ImageError)]
            self._cache.keep(shard, kept)
        self._cache.keep_refusals(
            (self._keys[each], {"why": str(fact), "reason": fact.reason}) for each, fact in facts.items() if isinstance(fact, ImageError)
        )
        return facts


def _facts(picture: Decoded) -> dict[str, Any]:
    """What a picture's records get to know of it."""
    return {
        "source_size": [picture.width, picture.height],
        "source_mode": picture.mode,
        "brightness": brightness(picture.image),
        "pixel_hash": pixel_hash(picture.image),
        "perceptual_hash": perceptual_hash(picture.image),
    }


def _recall(known: Known) -> _Fact:
    return known.facts if known.shard is not None else ImageError(known.facts["why"], Reason(known.facts["reason"]))


if __name__ == "__main__":
    run_stage(main)

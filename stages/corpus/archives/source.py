"""A corpus as it comes, read in place: an archive, archives beside each other, or a folder.

- A zip or an uncompressed tar is read where it lies, member by member, in any order.
- A tar.gz or tar.zst cannot: it is decompressed once to a tar (stages/corpus/archives/unpacked.py).
- Files of a folder are read by path. Archives directly in it count as if unpacked there.

Two layouts are known. OmniMedVQA's: one folder that holds `QA_information/Open-access` and
`Images`. A table's: one or more *.csv at the root and images anywhere below; these are named as if
they lay under `Images`, as in the other.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from stages.core import layout
from stages.core.params import CorpusLimits
from stages.corpus.archives.archive import Member, is_zip, open_tar, open_zip
from stages.corpus.archives.folder import archives_in, list_folder
from stages.corpus.archives.safety import checked
from stages.corpus.archives.unpacked import is_compressed, unpacked_tars
from stages.corpus.dataset.paths import IMAGES, QUESTIONS
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError

SCRATCH: Final = layout.SCRATCH / "corpus"
"""Where the uncompressed copy of a compressed tar lies."""

_SHADOWS: Final = "__MACOSX/"
"""What macOS's zip adds: a shadow of every folder."""


class Corpus:
    """The files of a corpus, named relative to the folder that holds its questions."""

    def __init__(self, path: Path, members: Iterable[Member], limits: CorpusLimits) -> None:
        """Check every member; RefusedDataError names the first unsafe one, or what is missing."""
        self.path = path
        self._files = _named(path, checked(path, members, limits))

    @property
    def names(self) -> list[str]:
        """All files, sorted."""
        return list(self._files)

    @property
    def question_files(self) -> list[str]:
        """Sorted question files: JSON directly in QA_information/Open-access, CSV at the root."""
        return [name for name in self._files if _holds_questions(name)]

    def __contains__(self, name: str) -> bool:
        """Whether there is such a file."""
        return name in self._files

    def size(self, name: str) -> int:
        """The unpacked size of a file in bytes; KeyError if there is none of that name."""
        return self._files[name].size

    def mark(self, name: str) -> str:
        """A cheap mark of the content, without reading it; empty if the source offers none."""
        return self._files[name].mark

    def in_order(self, names: Iterable[str]) -> list[str]:
        """These names in the order of storage, in which they are read fastest.

        KeyError for an unknown one.
        """
        return sorted(
            names,
            key=lambda name: (str(self._files[name].source), self._files[name].position, name),
        )

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) in the order of storage. Raises as `fetch` does."""
        for name in self.in_order(names):
            yield name, self.fetch(name)

    def fetch(self, name: str) -> bytes:
        """The content of one file; safe from several threads at once, and nothing of it is kept.

        Raises KeyError for an unknown name, DamagedMemberError for a file whose bytes cannot be
        had.
        """
        return self._files[name].load()


@contextmanager
def open_corpus(path: Path, limits: CorpusLimits, scratch: Path = SCRATCH) -> Iterator[Corpus]:
    """Open a corpus of any kind and check all that it holds; it can be read until this is left.

    Raises RefusedDataError for a file that is no archive or is truncated, for an unsafe member, for
    more than `limits` allow, and for what does not hold one corpus; FileNotFoundError if there is
    nothing at `path`.
    """
    with ExitStack() as opened:
        if not path.is_dir():
            ((_, members),) = _open_archives([path], limits, scratch, opened)
            yield Corpus(path, members, limits)
            return
        members = list_folder(path, limits.max_members)
        inner = (
            archives_in(members)
            if all(_before_layout(member.name) is None for member in members)
            else []
        )
        if inner:
            members = [member for member in members if member not in inner]
            for _, more in _open_archives(
                [path / member.name for member in inner], limits, scratch, opened
            ):
                members += _without_top(more)
        yield Corpus(path, members, limits)


def _open_archives(
    paths: Sequence[Path], limits: CorpusLimits, scratch: Path, opened: ExitStack
) -> list[tuple[Path, list[Member]]]:
    """Each archive with its members, which can be read until `opened` is left."""
    listed = []
    compressed = [path for path in paths if is_compressed(path)]
    with unpacked_tars(compressed, scratch, limits) as copies:
        for path in paths:
            archive = opened.enter_context(
                open_zip(path) if is_zip(path) else open_tar(copies.get(path, path), path)
            )
            listed.append((path, archive))
    return listed


def _without_top(members: Sequence[Member]) -> list[Member]:
    """One archive of several with its single top folder removed, if it has one."""
    starts = {start for member in members if (start := _before_layout(member.name)) is not None}
    (start,) = starts if len(starts) == 1 else ("",)
    return [replace(member, name=member.name.removeprefix(start)) for member in members]


def _before_layout(name: str) -> str | None:
    """What stands before Images/ or the questions in a path; None if neither is in it."""
    positions = [at for part in (IMAGES, QUESTIONS) if (at := f"/{name}".find(f"/{part}")) >= 0]
    return name[: min(positions)] if positions and not name.startswith(_SHADOWS) else None


def _holds_questions(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return (folder + "/" == QUESTIONS and file.endswith(".json")) or (
        not folder and _is_table(file)
    )


def _is_table(name: str) -> bool:
    return name.lower().endswith(".csv")


def _named(path: Path, files: dict[str, Member]) -> dict[str, Member]:
    """The corpus's files by the names that records use, sorted."""
    starts = {
        name[:at]
        for name in files
        if (at := f"/{name}".find(f"/{QUESTIONS}")) >= 0 and not name.startswith(_SHADOWS)
    }
    roots = sorted(
        start for start in starts if any(name.startswith(start + IMAGES) for name in files)
    )
    if len(roots) == 1:
        root = roots[0]
        return {
            name.removeprefix(root): files[name] for name in sorted(files) if name.startswith(root)
        }
    if roots:
        why = (
            f"{path}: expected one corpus, found {len(roots)} corpora, in"
            f" {', '.join(map(repr, roots[:3]))}"
        )
        raise RefusedDataError(why, CorpusFault.LAYOUT)
    if (top := _table_root(files)) is not None:
        return _under_images(
            path, {name.removeprefix(top): files[name] for name in files if name.startswith(top)}
        )
    tops = ", ".join(sorted({name.partition("/")[0] for name in files})[:5]) or "nothing"
    raise RefusedDataError(
        f"{path}: expected one folder with {QUESTIONS} and {IMAGES} (OmniMedVQA's layout), or one"
        f" with *.csv, found at the top: {tops}",
        CorpusFault.LAYOUT,
    )


def _table_root(files: Iterable[str]) -> str | None:
    """The folder ("" or ending in a slash) of a table and everything else.

    None if there is none.
    """
    names = [name for name in files if not name.startswith(_SHADOWS)]
    tables = [name for name in names if _is_table(name)]
    if not tables:
        return None
    top = posixpath.dirname(min(tables, key=lambda name: name.count("/")))
    root = f"{top}/" if top else ""
    return root if all(name.startswith(root) for name in names) else None


def _under_images(path: Path, files: dict[str, Member]) -> dict[str, Member]:
    named: dict[str, Member] = {}
    for name, member in files.items():
        stays = _holds_questions(name) or name.startswith(IMAGES)
        target = name if stays else IMAGES + name
        if target in named:
            why = (
                f"{path}: {target!r} names two files, one under {IMAGES} and one beside it;"
                " rename one of them"
            )
            raise RefusedDataError(why, CorpusFault.LAYOUT)
        named[target] = member
    return dict(sorted(named.items()))

"""A corpus read in place: an archive, several archives in a folder, or a folder of files.

- A zip or an uncompressed tar is read where it lies, member by member, in any order.
- A tar.gz or tar.zst is decompressed once to a tar (stages/corpus/archives/unpacked.py).
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
from stages.corpus.archives.folder import list_folder, top_level_archives
from stages.corpus.archives.safety import check_members
from stages.corpus.archives.unpacked import is_compressed, unpacked_tars
from stages.corpus.dataset.paths import IMAGES, QUESTIONS, is_left_behind
from stages.corpus.quarantine.reasons import CorpusFault, RefusedDataError

SCRATCH: Final = layout.SCRATCH / "corpus"
"""Folder of the uncompressed copies of compressed tars."""


class Corpus:
    """The files of a corpus, named relative to the folder that holds its questions.

    Those that systems and programs leave behind are not among them.
    """

    def __init__(self, path: Path, members: Iterable[Member], limits: CorpusLimits) -> None:
        """Check every member; RefusedDataError names the first unsafe one, or what is missing."""
        self.path = path
        files = check_members(path, members, limits)
        kept = {name: member for name, member in files.items() if not is_left_behind(name)}
        self._files = _name_files(path, kept)

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
        """The unpacked size of a file in bytes. Raises KeyError for an unknown name."""
        return self._files[name].size

    def fingerprint(self, name: str) -> str:
        """Changes with the content, without reading it; empty if the source offers none."""
        return self._files[name].fingerprint

    def in_order(self, names: Iterable[str]) -> list[str]:
        """These names in the order of storage, the fastest to read.

        Raises KeyError for an unknown name.
        """

        def position(name: str) -> tuple[str, int, str]:
            member = self._files[name]
            return str(member.source), member.position, name

        return sorted(names, key=position)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield (name, content) in the order of storage. Raises as `fetch` does."""
        for name in self.in_order(names):
            yield name, self.fetch(name)

    def fetch(self, name: str) -> bytes:
        """The content of one file, not cached. Safe from several threads at once.

        Raises KeyError for an unknown name, DamagedMemberError for a file that cannot be read.
        """
        return self._files[name].load()


@contextmanager
def open_corpus(path: Path, limits: CorpusLimits, scratch: Path = SCRATCH) -> Iterator[Corpus]:
    """Open a corpus of any kind and check all its members; it is readable inside the context.

    Raises RefusedDataError for a file that is not an archive or is truncated, for an unsafe member,
    for exceeded `limits`, and for anything but exactly one corpus; FileNotFoundError if `path` does
    not exist.
    """
    with ExitStack() as stack:
        if path.is_dir():
            members = _folder_members(path, limits, scratch, stack)
        else:
            (members,) = _open_archives([path], limits, scratch, stack)
        yield Corpus(path, members, limits)


def _folder_members(
    path: Path, limits: CorpusLimits, scratch: Path, stack: ExitStack
) -> list[Member]:
    """Files of a folder; where it has no layout of its own, those in its archives as well."""
    members = [
        each for each in list_folder(path, limits.max_members) if not is_left_behind(each.name)
    ]
    if any(_prefix(member.name, IMAGES, QUESTIONS) is not None for member in members):
        return members
    archives = top_level_archives(members)
    files = [member for member in members if member not in archives]
    for content in _open_archives(
        [path / archive.name for archive in archives], limits, scratch, stack
    ):
        files += _without_top(content)
    return files


def _open_archives(
    paths: Sequence[Path], limits: CorpusLimits, scratch: Path, stack: ExitStack
) -> list[list[Member]]:
    """Members of each archive, readable until `stack` is closed."""
    compressed = [path for path in paths if is_compressed(path)]
    with unpacked_tars(compressed, scratch, limits) as copies:
        # open within the lock: a parallel stage may delete a copy that is not open
        return [
            stack.enter_context(
                open_zip(path) if is_zip(path) else open_tar(copies.get(path, path), path)
            )
            for path in paths
        ]


def _without_top(members: Sequence[Member]) -> list[Member]:
    """Members of one of several archives, without its single top folder if it has one."""
    prefixes = {_prefix(member.name, IMAGES, QUESTIONS) for member in members} - {None}
    prefix = prefixes.pop() if len(prefixes) == 1 else None
    return [replace(member, name=member.name.removeprefix(prefix or "")) for member in members]


def _prefix(name: str, *folders: str) -> str | None:
    """The part of a path before the first of these folders; None if it contains none of them."""
    positions = [at for folder in folders if (at := f"/{name}".find(f"/{folder}")) >= 0]
    return name[: min(positions)] if positions else None


def _holds_questions(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if not folder:
        return _is_table(file)
    return f"{folder}/" == QUESTIONS and file.endswith(".json")


def _is_table(name: str) -> bool:
    return name.lower().endswith(".csv")


def _name_files(path: Path, files: dict[str, Member]) -> dict[str, Member]:
    """The corpus's files by the names that records use, sorted."""
    candidates = {_prefix(name, QUESTIONS) for name in files} - {None}
    roots = sorted(
        root
        for root in candidates
        if root is not None and any(name.startswith(root + IMAGES) for name in files)
    )
    if len(roots) > 1:
        raise RefusedDataError(
            f"{path}: expected one corpus, found {len(roots)} corpora, in"
            f" {', '.join(map(repr, roots[:3]))}",
            CorpusFault.LAYOUT,
        )
    if roots:
        return dict(sorted(_below(roots[0], files).items()))
    if (root := _table_root(files)) is not None:
        return _under_images(path, _below(root, files))
    tops = ", ".join(sorted({name.partition("/")[0] for name in files})[:5]) or "nothing"
    raise RefusedDataError(
        f"{path}: expected one folder with {QUESTIONS} and {IMAGES} (OmniMedVQA's layout), or one"
        f" with *.csv, found at the top: {tops}",
        CorpusFault.LAYOUT,
    )


def _below(root: str, files: dict[str, Member]) -> dict[str, Member]:
    return {
        name.removeprefix(root): member for name, member in files.items() if name.startswith(root)
    }


def _table_root(files: Iterable[str]) -> str | None:
    """The folder ("" or ending in a slash) that holds a table and everything else, if any."""
    tables = [name for name in files if _is_table(name)]
    if not tables:
        return None
    folder = posixpath.dirname(min(tables, key=lambda name: name.count("/")))
    root = f"{folder}/" if folder else ""
    return root if all(name.startswith(root) for name in files) else None


def _under_images(path: Path, files: dict[str, Member]) -> dict[str, Member]:
    """The files of a table's layout, images renamed to lie under `Images`."""
    renamed: dict[str, Member] = {}
    for name, member in files.items():
        is_in_place = _holds_questions(name) or name.startswith(IMAGES)
        target = name if is_in_place else IMAGES + name
        if target in renamed:
            raise RefusedDataError(
                f"{path}: {target!r} names two files, one under {IMAGES} and one beside it; rename"
                " one of them",
                CorpusFault.LAYOUT,
            )
        renamed[target] = member
    return dict(sorted(renamed.items()))

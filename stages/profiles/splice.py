"""Setting values in params.yaml as text: every comment stays, and what stood there is kept at the end of the file.

So a profile can be taken back without any other copy: `reset` gives the text that was there before `set_values`, byte for byte, with
edits of other lines in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from stages.core.errors import InputError
from stages.core.params import parse_settings
from stages.profiles.schema import merged

_HEAD: Final = "# profile: "
_NOTE: Final = "# What stood here before; `python -m stages.profiles.command sample` puts it back. Edit anything above, nothing below."
_BEFORE: Final = "#< "
_ADDED: Final = "#+ "


@dataclass(frozen=True)
class _Entry:
    """Lines first..last of a key, the column of its value, and what it holds."""

    first: int
    last: int
    column: int
    node: yaml.Node


def set_values(text: str, values: dict[str, Any], profile: str, path: Path) -> str:
    """The text with values set, nested as there, and under the name of a profile what stood there before. Without values: the text.

    Lines of a key that is set become one, its value in YAML's flow style; a key that is new goes to the end of its group.
    """
    lines = text.splitlines(keepends=True)
    kept = []
    for key, value in _changes(parse_settings(text, path), values, _tree(text, path)):
        root = _tree("".join(lines), path)
        entry = _entry(root, key)
        if entry is None:
            group = _entry(root, key[:-1])
            if group is None or not isinstance(group.node, yaml.MappingNode):
                raise InputError(f"{path}: there is no group {'.'.join(key[:-1])} to add {key[-1]} to")
            indent = " " * group.node.value[0][0].start_mark.column
            lines.insert(group.last + 1, f"{indent}{key[-1]}: {_flow(value)}\n")
            kept.append(_ADDED + json.dumps(key) + "\n")
            continue
        before = lines[entry.first : entry.last + 1]
        kept += [_BEFORE + json.dumps(key) + each for each in before]
        lines[entry.first : entry.last + 1] = [_line(before, entry, value)]
    made = "".join(lines)
    if not kept:
        return text
    now = parse_settings(made, path)
    assert merged(now, values) == now, "the text says what the values are"
    return f"{made}\n{_HEAD}{profile}\n{_NOTE}\n{''.join(kept)}"


def reset(text: str, path: Path) -> tuple[str, str | None]:
    """The text as it was before a profile was set, with edits of other lines in it, and which profile that was; None if none is set.

    Raises InputError if a line that the profile set is gone, or what was kept cannot be read.
    """
    body, found, kept = text.partition(f"\n{_HEAD}")
    if not found:
        return text, None
    profile, _, records = kept.partition("\n")
    lines = body.splitlines(keepends=True)
    added, before = _kept(records, path)
    for key in reversed(added):
        entry = _required(lines, key, profile, path)
        del lines[entry.first : entry.last + 1]
    for key, old in before.items():
        entry = _required(lines, key, profile, path)
        lines[entry.first : entry.last + 1] = old
    return "".join(lines), profile


def _kept(records: str, path: Path) -> tuple[list[tuple[str, ...]], dict[tuple[str, ...], list[str]]]:
    added, before = list[tuple[str, ...]](), dict[tuple[str, ...], list[str]]()
    for line in records.splitlines(keepends=True):
        mark, rest = line[: len(_BEFORE)], line[len(_BEFORE) :]
        if mark not in (_BEFORE, _ADDED):
            if line.strip() and line.strip() != _NOTE:
                raise InputError(f"{path}: {line.strip()!r} stands among what a profile keeps at the end of the file: move it further up")
            continue
        try:
            key, end = json.JSONDecoder().raw_decode(rest)
        except ValueError:
            raise InputError(
                f"{path}: {line.strip()!r} is not what a profile wrote: take the last committed one, git checkout {path}"
            ) from None
        if mark == _ADDED:
            added.append(tuple(key))
        else:
            before.setdefault(tuple(key), []).append(rest[end:])
    return added, before


def _required(lines: Sequence[str], key: Sequence[str], profile: str, path: Path) -> _Entry:
    entry = _entry(_tree("".join(lines), path), key)
    if entry is None:
        raise InputError(
            f"{path}: {'.'.join(key)}, which the profile {profile} set, is gone, so what stood there cannot be put back: add it again with "
            f"any value, or take the last committed file, git checkout {path}"
        )
    return entry


def _changes(
    tree: Any, values: dict[str, Any], node: yaml.Node | None, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Key and value of each entry to write: as deep as groups are written line by line, what stays the same left out."""
    for name, value in values.items():
        key = (*above, str(name))
        before = tree.get(name) if isinstance(tree, dict) else None
        child = _child(node, str(name))
        if isinstance(before, dict) and isinstance(value, dict):
            if isinstance(child, yaml.MappingNode) and not child.flow_style:
                yield from _changes(before, value, child, key)
                continue
            value = merged(before, value)
        if name not in tree or before != value or type(before) is not type(value):
            yield key, value


def _tree(text: str, path: Path) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    assert node is not None, "it was read before"
    return node


def _entry(root: yaml.Node, key: Sequence[str]) -> _Entry | None:
    """Where a key stands, by its path from the top."""
    node: yaml.Node | None = root
    name = None
    for part in key:
        pair = _pair(node, part)
        if pair is None:
            return None
        name, node = pair
    if name is None or node is None:
        return None
    return _Entry(name.start_mark.line, _last(node), node.start_mark.column, node)


def _pair(node: yaml.Node | None, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((key, value) for key, value in pairs if key.value == name), None)


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pair = _pair(node, name)
    return pair[1] if pair else None


def _last(node: yaml.Node) -> int:
    """The last line of a value: that of a block ends before the comments behind it, which the parser counts to it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.line)


def _line(before: Sequence[str], entry: _Entry, value: Any) -> str:
    """The line of a key with another value; a comment behind it stays in its column if there is room."""
    first = before[0]
    one = entry.first == entry.node.start_mark.line
    head = first[: entry.column] if one else first[: first.index(":") + 1] + " "
    behind = first[entry.node.end_mark.column :] if one and entry.last == entry.first else ""
    comment = re.match(r"\s*(#.*)", behind)
    made = head + _flow(value)
    if comment is None:
        return made + "\n"
    column = entry.node.end_mark.column + comment.start(1)
    return made.ljust(max(column, len(made) + 2)) + comment.group(1) + "\n"


def _flow(value: Any) -> str:
    """A value in one line, numbers as params.yaml writes them: 1.0e-6."""
    return (
        str(yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True))
        .removesuffix("\n...\n")
        .removesuffix("\n")
    )


class _Dumper(yaml.SafeDumper):
    """Writes small numbers without a zero in the exponent."""


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.ScalarNode:
    text = repr(value)
    if "e" in text:
        digits, _, exponent = text.partition("e")
        text = f"{digits if '.' in digits else digits + '.0'}e{int(exponent)}"
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _number)

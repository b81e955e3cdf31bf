"""Set values in params.yaml and take them back, with its comments intact.

What was replaced stays at the end of the file as comments. So a profile can be taken back without
any other copy: `reset` gives the text that was there before `set_values`, byte for byte, with edits
of other lines in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken

from stages.core.errors import InputError
from stages.core.yaml_files import dump_edited, load_for_edit, load_yaml
from stages.profiles.schema import merged

_HEAD: Final = "# profile: "
_NOTE: Final = "# Old values; `med-r1 profile sample` restores them. Edit above only."
_REPLACED: Final = "#< "
_ADDED: Final = "#+ "

Key = tuple[str, ...]


def set_values(text: str, values: dict[str, Any], profile: str, path: Path) -> str:
    """The text with values set, nested as there, and what they replaced below a profile's name.

    A dict or list that is set is written in braces on the line of its key; a new key goes to the
    end of its group. The text itself if it has these values already. InputError if it cannot be
    edited, as it cannot where an anchor would break.
    """
    tree = load_for_edit(text, path)
    replaced, added = CommentedMap(), CommentedSeq()
    _set(tree, values, (), replaced, added)
    if not replaced and not added:
        return text
    records = [*_commented(replaced, _REPLACED), *_commented(added, _ADDED)]
    edited = f"{dump_edited(tree)}\n{_HEAD}{profile}\n{_NOTE}\n{''.join(records)}"
    now = load_yaml(edited, path)
    if merged(now, values) != now or reset(edited, path) != (text, profile):
        remedy = "write what it changes without anchors"
        raise InputError(f"{path}: profile {profile} could not be taken back: {remedy}")
    return edited


def reset(text: str, path: Path) -> tuple[str, str | None]:
    """The text as it was before a profile was set, with later edits of other lines, and its name.

    The name is None if none is set. InputError if a key that the profile set is missing, or the
    records at the end are damaged.
    """
    body, separator, rest = text.partition(f"\n{_HEAD}")
    if not separator:
        return text, None
    profile, _, records = rest.partition("\n")
    replaced, added = _records(records, path)
    tree = load_for_edit(body, path)
    for key in reversed(added):
        _remove(_group(tree, key, profile, path), key[-1])
    for key, group in _leaves(replaced, tree, ()):
        _restore(_group(tree, key, profile, path), group, key[-1])
    return dump_edited(tree), profile


def _set(
    group: CommentedMap,
    values: dict[str, Any],
    above: Key,
    replaced: CommentedMap,
    added: CommentedSeq,
) -> None:
    """Set what differs, as deep as keys have lines of their own; record old values and new keys."""
    own = dict(group.non_merged_items())
    for name, value in values.items():
        old = group.get(name)
        if _is_block(old) and isinstance(value, dict):
            below = CommentedMap()
            _set(old, value, (*above, name), below, added)
            if below:
                replaced[name] = below
            continue
        new = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        if name in group and old == new and isinstance(old, bool) == isinstance(new, bool):
            continue
        if name in own:
            tail = _take_tail(group, name)
            _copy_entry(group, replaced, name)
            group[name] = _in_braces(new)
            _put_tail(group, name, tail)
        else:
            last = list(own)[-1]
            tail = _take_tail(group, last)
            group[name] = own[name] = _in_braces(new)
            _put_tail(group, name, tail)
            added.append([*above, name])


def _in_braces(value: Any) -> Any:
    """A value that is written on one line."""
    if not isinstance(value, dict | list):
        return value
    flow = CommentedMap(value) if isinstance(value, dict) else CommentedSeq(value)
    flow.fa.set_flow_style()
    return flow


def _is_block(value: Any) -> bool:
    """Whether it is a mapping whose keys have lines of their own."""
    return isinstance(value, CommentedMap) and bool(value) and not value.fa.flow_style()


def _commented(tree: CommentedMap | CommentedSeq, mark: str) -> list[str]:
    """A tree as lines of comments, each after a mark; none if it is empty."""
    return [mark + line for line in dump_edited(tree).splitlines(keepends=True)] if tree else []


def _records(text: str, path: Path) -> tuple[CommentedMap, list[Key]]:
    """What a profile replaced, and the keys that it added, from the end of the file."""
    lines: dict[str, list[str]] = {_REPLACED: [], _ADDED: []}
    for line in text.splitlines(keepends=True):
        mark, rest = line[: len(_REPLACED)], line[len(_REPLACED) :]
        if mark in lines:
            lines[mark].append(rest)
        elif line.strip() and line.strip() != _NOTE:
            raise InputError(f"{path}: move {line.strip()!r} up, above the line {_HEAD}...")
    try:
        replaced = load_for_edit("".join(lines[_REPLACED]) or "{}\n", path)
        added = load_yaml("".join(lines[_ADDED]), path) or []
        return replaced, [tuple(key) for key in added]
    except (InputError, TypeError) as error:
        remedy = f"take the last committed file, git checkout {path}"
        raise InputError(f"{path}: the records below {_HEAD}... are damaged: {remedy}") from error


def _leaves(
    replaced: CommentedMap,
    tree: CommentedMap,
    above: Key,
) -> Iterator[tuple[Key, CommentedMap]]:
    """Key of each replaced value, and the mapping among the records that has it."""
    for name, value in replaced.items():
        now = tree.get(name)
        if _is_block(value) and isinstance(now, CommentedMap):
            yield from _leaves(value, now, (*above, name))
        else:
            yield (*above, name), replaced


def _group(tree: CommentedMap, key: Key, profile: str, path: Path) -> CommentedMap:
    """The mapping that has a key; InputError if there is none."""
    group: Any = tree
    for name in key[:-1]:
        group = group.get(name) if isinstance(group, dict) else None
    if isinstance(group, CommentedMap) and key[-1] in group:
        return group
    dotted = ".".join(map(str, key))
    remedy = f"add it with any value, or take the last committed file, git checkout {path}"
    raise InputError(f"{path}: {dotted}, set by profile {profile}, is missing: {remedy}")


def _restore(group: CommentedMap, replaced: CommentedMap, name: str) -> None:
    """Put a replaced value back, with the comment on its line."""
    tail = _take_tail(group, name)
    _copy_entry(replaced, group, name)
    _put_tail(group, name, tail)


def _remove(group: CommentedMap, name: str) -> None:
    """Delete an added key; the comments below it then follow the key before it."""
    tail = _take_tail(group, name)
    names = list(group)
    del group[name]
    group.ca.items.pop(name, None)
    _put_tail(group, names[names.index(name) - 1], tail)


def _copy_entry(source: CommentedMap, target: CommentedMap, name: str) -> None:
    """Copy a value and the comment on its line."""
    target[name] = source[name]
    _set_token(target, name, _token(source, name))


# ruamel.yaml keeps the blank lines and comments between two entries as a tail of the comment on the
# last line of the entry above them. An entry that comes or goes must leave its tail where it was.


def _take_tail(group: CommentedMap, name: str) -> str:
    """Remove the blank lines and comments below an entry, and return them."""
    holder, key = _last_line(group, name)
    token = _token(holder, key)
    if token is None:
        return ""
    comment, _, tail = token.value.partition("\n")
    # a new token, as other trees may share the old one
    own = CommentToken(f"{comment}\n", token.start_mark, None) if comment else None
    _set_token(holder, key, own)
    return str(tail)


def _put_tail(group: CommentedMap, name: str, tail: str) -> None:
    """Put blank lines and comments below an entry."""
    if not tail:
        return
    holder, key = _last_line(group, name)
    token = _token(holder, key)
    comment, mark = (token.value, token.start_mark) if token else ("\n", CommentMark(0))
    _set_token(holder, key, CommentToken(comment + tail, mark, None))


def _last_line(group: CommentedMap, name: str) -> tuple[CommentedMap | CommentedSeq, Any]:
    """The collection and key whose comment is the one on the last line of an entry."""
    holder: CommentedMap | CommentedSeq = group
    key: Any = name
    value = group[name]
    while isinstance(value, CommentedMap | CommentedSeq) and value and not value.fa.flow_style():
        holder = value
        key = list(value)[-1] if isinstance(value, CommentedMap) else len(value) - 1
        value = value[key]
    return holder, key


def _slot(holder: CommentedMap | CommentedSeq) -> int:
    """The place of the comment behind a value, among those of an entry."""
    return 2 if isinstance(holder, CommentedMap) else 0


def _token(holder: CommentedMap | CommentedSeq, key: Any) -> CommentToken | None:
    tokens = holder.ca.items.get(key)
    return tokens[_slot(holder)] if tokens else None


def _set_token(holder: CommentedMap | CommentedSeq, key: Any, token: CommentToken | None) -> None:
    holder.ca.items.setdefault(key, [None] * 4)[_slot(holder)] = token

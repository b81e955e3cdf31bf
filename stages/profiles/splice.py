"""Set values in params.yaml and undo it, preserving comments.

The replaced values are recorded in comments at the end of the file. So a profile can be undone
without any other copy: `reset` returns the text before `set_values`, byte for byte, with later
edits of other lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.scalarstring import DoubleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from stages.core.errors import InputError
from stages.core.yaml_files import dump_edited, load_for_edit, load_yaml
from stages.profiles.schema import merge

_HEAD: Final = "# profile: "
_NOTE: Final = "# Old values; `med-r1 profile sample` restores them. Edit above only."
_LINE_BREAKS: Final = re.compile("[\x85\u2028\u2029]")
"""Characters at which YAML ends a line, and which are not written as they are."""
_REPLACED: Final = "#< "
_ADDED: Final = "#+ "
_WHOLE: Final = "#= "

Key = tuple[str, ...]
"""Path of a key from the root."""
Collection = CommentedMap | CommentedSeq


def set_values(
    text: str,
    values: dict[str, Any],
    profile: str,
    path: Path,
    groups: Mapping[str, dict[str, Any]] | None = None,
) -> str:
    """The text with (nested) values set, and records of the old ones under the profile's name.

    A dict or list is written in braces on the line of its key; a new key goes to the end of its
    group. `groups`: top-level groups that are replaced as a whole, with a line per key. Unchanged
    if the text has these values already. InputError if it cannot be edited, for example because an
    anchor would break.
    """
    groups = {name: merge(each, values.get(name, {})) for name, each in (groups or {}).items()}
    values = {name: value for name, value in values.items() if name not in groups}
    tree = load_for_edit(text, path)
    text = dump_edited(tree)
    replaced = CommentedMap()
    added = CommentedSeq()
    whole = _replace_groups(tree, groups, replaced)
    _set(tree, values, (), replaced, added)
    if not replaced and not added:
        return text
    records = [
        *_commented(whole, _WHOLE),
        *_commented(replaced, _REPLACED),
        *_commented(added, _ADDED),
    ]
    edited = f"{dump_edited(tree)}\n{_HEAD}{profile}\n{_NOTE}\n{''.join(records)}"
    edited_tree = load_yaml(edited, path)
    is_set = merge(edited_tree, values) == edited_tree and all(
        edited_tree[name] == group for name, group in groups.items()
    )
    if not is_set or reset(edited, path) != (text, profile):
        raise InputError(
            f"{path}: profile {profile} could not be undone: write what it changes without anchors"
        )
    return edited


def reset(text: str, path: Path) -> tuple[str, str | None]:
    """The text before a profile was set, with later edits of other lines, and the profile's name.

    The name is None if none is set. InputError if a key that the profile set is missing, or the
    records at the end are corrupt.
    """
    body, separator, rest = text.partition(f"\n{_HEAD}")
    if not separator:
        return text, None
    profile, _, records = rest.partition("\n")
    replaced, added, whole = _records(records, path)
    tree = load_for_edit(body, path)
    for key in reversed(added):
        _remove(_group(tree, key, profile, path), key[-1])
    for key, old_group in _leaves(replaced, tree, (), whole):
        _restore(_group(tree, key, profile, path), old_group, key[-1])
    return dump_edited(tree), profile


def is_record(line: str) -> bool:
    """Whether a line of params.yaml is a record, below the settings, of what a profile changed."""
    return line.startswith((_REPLACED, _ADDED, _WHOLE))


def _replace_groups(
    tree: CommentedMap, groups: Mapping[str, dict[str, Any]], replaced: CommentedMap
) -> CommentedSeq:
    """Replace groups as a whole and record the old ones; the names of those that differ."""
    names = CommentedSeq()
    for name, group in groups.items():
        if tree[name] == group and list(tree[name]) == list(group):
            continue
        tail = _take_tail(tree, name)
        _copy_entry(tree, replaced, name)
        new = CommentedMap({key: _in_braces(value) for key, value in group.items()})
        if _is_block(tree[name]):
            _copy_comments(tree[name], new)
        tree[name] = new
        _put_tail(tree, name, tail)
        names.append(name)
    return names


def _copy_comments(old: CommentedMap, new: CommentedMap) -> None:
    """Copy the comments on the lines of entries that both groups have, and those between entries.

    None is put above the first entry or below the last: these places are of the group's own
    comments.
    """
    names = list(new)
    placed: str | None = None
    above: list[CommentToken] = []
    for name in old:
        # ruamel.yaml has comments below a line that ends without one at the next entry
        above += (old.ca.items.get(name) or [None] * 4)[1] or []
        holder, key = _last_line(old, name)
        token = _token(holder, key)
        comment, _, below = token.value.partition("\n") if token else ("", "", "")
        if name in new:
            placed = name
            if token and comment:
                _set_token(new, name, CommentToken(f"{comment}\n", token.start_mark, None))
            if above and name != names[0]:
                new.ca.items.setdefault(name, [None] * 4)[1] = above
            above = []
        if below and placed not in (None, names[-1]):
            _put_tail(new, placed, below)


def _set(
    group: CommentedMap,
    values: dict[str, Any],
    prefix: Key,
    replaced: CommentedMap,
    added: CommentedSeq,
) -> None:
    """Set the values that differ, descending into block mappings; record old values and new keys.

    `prefix`: the key of `group`.
    """
    own = dict(group.non_merged_items())
    for name, value in values.items():
        old = group.get(name)
        if _is_block(old) and isinstance(value, dict):
            replaced_below = CommentedMap()
            _set(old, value, (*prefix, name), replaced_below, added)
            if replaced_below:
                replaced[name] = replaced_below
            continue
        new = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        # in Python, 1 == True
        if name in group and old == new and isinstance(old, bool) == isinstance(new, bool):
            continue
        if name in own:
            tail = _take_tail(group, name)
            _copy_entry(group, replaced, name)
        else:
            if not own:
                raise InputError(
                    f"{'.'.join(map(str, [*prefix, name]))} cannot be set by a profile: its group"
                    " in params.yaml has only merged keys; give it one of its own"
                )
            tail = _take_tail(group, list(own)[-1])
            added.append([*prefix, name])
        group[name] = own[name] = _in_braces(new)
        _put_tail(group, name, tail)


def _in_braces(value: Any) -> Any:
    """A value in the form that is written on one line."""
    if isinstance(value, str) and _LINE_BREAKS.search(value):
        return DoubleQuotedScalarString(value)  # with escapes: a plain one would be cut here
    if not isinstance(value, dict | list):
        return value
    flow: Collection
    if isinstance(value, dict):
        flow = CommentedMap({name: _in_braces(each) for name, each in value.items()})
    else:
        flow = CommentedSeq(map(_in_braces, value))
    flow.fa.set_flow_style()
    return flow


def _is_block(value: Any) -> bool:
    """Whether it is a mapping with each key on its own line."""
    return isinstance(value, CommentedMap) and bool(value) and not value.fa.flow_style()


def _commented(tree: Collection, mark: str) -> list[str]:
    """A tree as comment lines that start with a mark; none if it is empty."""
    return [mark + line for line in dump_edited(tree).splitlines(keepends=True)] if tree else []


def _records(text: str, path: Path) -> tuple[CommentedMap, list[Key], list[str]]:
    """What a profile replaced, the keys that it added, and the groups it replaced as a whole.

    From the end of the file.
    """
    lines: dict[str, list[str]] = {_REPLACED: [], _ADDED: [], _WHOLE: []}
    for line in text.splitlines(keepends=True):
        mark = line[: len(_REPLACED)]  # all marks have three characters
        if mark in lines:
            lines[mark].append(line.removeprefix(mark))
        elif line.strip() and line.strip() != _NOTE:
            raise InputError(f"{path}: move {line.strip()!r} up, above the line {_HEAD}...")
    try:
        replaced = load_for_edit("".join(lines[_REPLACED]) or "{}\n", path)
        added = load_yaml("".join(lines[_ADDED]), path) or []
        whole = load_yaml("".join(lines[_WHOLE]), path) or []
        return replaced, [tuple(key) for key in added], [str(name) for name in whole]
    except (InputError, TypeError) as error:
        raise InputError(
            f"{path}: the records below {_HEAD}... are corrupt: restore the last committed file,"
            f" git checkout {path}"
        ) from error


def _leaves(
    replaced: CommentedMap, tree: CommentedMap, prefix: Key, whole: Sequence[str] = ()
) -> Iterator[tuple[Key, CommentedMap]]:
    """Key of each replaced value, and the mapping of the records that has it.

    `whole`: the keys whose value was replaced as a whole.
    """
    for name, value in replaced.items():
        present = tree.get(name)
        if name not in whole and _is_block(value) and isinstance(present, CommentedMap):
            yield from _leaves(value, present, (*prefix, name))
        else:
            yield (*prefix, name), replaced


def _group(tree: CommentedMap, key: Key, profile: str, path: Path) -> CommentedMap:
    """The mapping that has a key; InputError if there is none."""
    group: Any = tree
    for name in key[:-1]:
        group = group.get(name) if isinstance(group, dict) else None
    if isinstance(group, CommentedMap) and key[-1] in group:
        return group
    raise InputError(
        f"{path}: {'.'.join(map(str, key))}, set by profile {profile}, is missing: add it with any"
        f" value, or restore the last committed file, git checkout {path}"
    )


def _restore(group: CommentedMap, replaced: CommentedMap, name: str) -> None:
    """Put a replaced value back, with the comment on its line."""
    tail = _take_tail(group, name)
    _copy_entry(replaced, group, name)
    _put_tail(group, name, tail)


def _remove(group: CommentedMap, name: str) -> None:
    """Delete an added key; the comments below it then belong to the key before it."""
    tail = _take_tail(group, name)
    names = list(group)
    del group[name]
    group.ca.items.pop(name, None)
    before = names[: names.index(name)] or [each for each in group if each != name]
    if before:
        _put_tail(group, before[-1], tail)


def _copy_entry(source: CommentedMap, target: CommentedMap, name: str) -> None:
    """Copy a value and the comment on its line."""
    target[name] = source[name]
    _set_token(target, name, _token(source, name))


# ruamel.yaml stores the blank lines and comments between two entries as a tail of the comment on
# the last line of the entry above. An entry that is added or removed must leave its tail in place.


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


def _last_line(group: CommentedMap, name: str) -> tuple[Collection, Any]:
    """The collection and key whose comment is the one on the last line of an entry."""
    holder: Collection = group
    key: Any = name
    value = group[name]
    while isinstance(value, CommentedMap | CommentedSeq) and value and not value.fa.flow_style():
        holder = value
        key = list(value)[-1] if isinstance(value, CommentedMap) else len(value) - 1
        value = value[key]
    return holder, key


def _slot(holder: Collection) -> int:
    """Index of the comment after a value, in ruamel.yaml's list of an entry's comments."""
    return 2 if isinstance(holder, CommentedMap) else 0


def _token(holder: Collection, key: Any) -> CommentToken | None:
    tokens = holder.ca.items.get(key)
    return tokens[_slot(holder)] if tokens else None


def _set_token(holder: Collection, key: Any, token: CommentToken | None) -> None:
    holder.ca.items.setdefault(key, [None] * 4)[_slot(holder)] = token

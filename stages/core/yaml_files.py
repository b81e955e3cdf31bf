"""Read, write and edit YAML 1.2, the dialect in which DVC reads params.yaml.

`load_yaml` gives plain values, `load_for_edit` a tree that `dump_edited` writes back with its
comments, order, quotes and layout. `off`, `on`, `yes` and `no` are strings, `010` is ten, `0o17`
fifteen, and `1e-6` a number.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node, ScalarNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import RoundTripRepresenter

from stages.core.errors import InputError

_NO_WRAPPING: Final = 10**6


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; FileNotFoundError if there is none, InputError as `load_yaml`."""
    return load_yaml(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; InputError with the line of the first byte that is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: save it as UTF-8 ({error.reason})") from error


def load_yaml(text: str, path: Path) -> Any:
    """Plain values of a YAML 1.2 text, as DVC reads them; `path` is the file that errors name.

    InputError with file and line for invalid YAML, a duplicate key, or a tag other than YAML's own.
    """
    yaml = YAML(typ="safe")
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except (YAMLError, ValueError) as error:
        raise InputError(f"{path}{_line(error, text)}: not YAML 1.2: {_problem(error)}") from error


def load_for_edit(text: str, path: Path) -> CommentedMap:
    """Load a YAML mapping for editing: `dump_edited` reproduces every byte but the edits.

    A file in the layout of DVC is reproduced in that of params.yaml. InputError as in `load_yaml`,
    if it is not a mapping, and, with the line to write instead, if a line would not be reproduced:
    comments inside multi-line braces, unusual indentation, other spellings of null, true and false.
    """
    if not isinstance(load_yaml(text, path), dict):
        raise InputError(f"{path}: expected a mapping of keys to values")
    tree: CommentedMap = _editor().load(text)
    if _dumped(_dvc_editor(), _dvc_editor().load(text)) == text:
        # as `dvc exp run --set-param` leaves a file: the same values in the layout of `_editor`
        tree = _editor().load(dump_edited(tree))
        text = dump_edited(tree)
    before, after = text.split("\n"), dump_edited(tree).split("\n")
    for number, (line, rewritten) in enumerate(zip(before, after, strict=False), start=1):
        if line != rewritten:
            remedy = f"write the line as {rewritten!r}"
            raise InputError(f"{path}, line {number}: layout cannot be kept by an edit: {remedy}")
    if len(before) != len(after):
        raise InputError(f"{path}: layout cannot be kept by an edit: end the file with a line end")
    return tree


def dump_edited(tree: CommentedMap | CommentedSeq) -> str:
    """The text of a tree from `load_for_edit`."""
    return _dumped(_editor(), tree)


def dump_yaml(data: Any) -> str:
    """Plain values as block-style YAML, keys in their order, each string on one line."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.width = _NO_WRAPPING
    return _dumped(yaml, data)


def _editor() -> YAML:
    """The round-trip reader and writer, in the layout of params.yaml: lists are indented."""
    yaml = YAML()
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = _NO_WRAPPING
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _dvc_editor() -> YAML:
    """The writer of DVC: wraps at 80 columns, indents no lists, drops quotes, leaves out nulls."""
    return YAML()


def _dumped(yaml: YAML, data: Any) -> str:
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()


def _line(error: Exception, text: str) -> str:
    """The line of an error, as it follows the name of a file; empty if it has none."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f", line {error.problem_mark.line + 1}"
    if isinstance(error, ReaderError):
        # the position that libyaml gives counts from elsewhere
        return f", line {text.count(chr(10), 0, text.find(chr(error.character))) + 1}"
    return ""


def _problem(error: Exception) -> str:
    """What is wrong, on one line."""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return " ".join(str(problem).split())


class _Constructor(SafeConstructor):
    """Gives the line also of a value that is invalid for its tag, as the date 2020-13-45."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (KeyError, ValueError) as error:
            problem = f"{node.value!r} is not a {node.tag}: {error}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


class _Representer(RoundTripRepresenter):
    """Writes null as `null`, small numbers as 1.0e-6, and strings as libyaml can read them."""

    def represent_str(self, data: str) -> ScalarNode:
        # unquoted in braces, YAML 1.2 allows the question mark, and libyaml does not
        style = "'" if "?" in data else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def represent_none(self, data: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")

    def represent_float(self, data: float) -> ScalarNode:
        digits, exponent_sign, exponent = repr(data).partition("e")
        if not exponent_sign:
            return super().represent_float(data)
        mantissa = digits if "." in digits else f"{digits}.0"
        return self.represent_scalar("tag:yaml.org,2002:float", f"{mantissa}e{int(exponent)}")


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(type(None), _Representer.represent_none)
_Representer.add_representer(float, _Representer.represent_float)

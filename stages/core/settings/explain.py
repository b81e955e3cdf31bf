"""Explain why settings are not allowed: dotted key, value, and what is allowed instead."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails


def explain(error: ValidationError, prefix: str, model: type[BaseModel], given: Any) -> list[str]:
    """One line a problem: dotted key, value, what is allowed."""
    reasons: dict[str, list[str]] = {}  # a value that fits none of several types has one for each
    for problem in error.errors():
        path = _settings_path(problem, given)
        key = ".".join(([prefix] if prefix else []) + path)
        if problem["type"] == "extra_forbidden":
            known = list(_known_keys(model, path[:-1]))
            hint = did_you_mean(path[-1], known)
            why = f"unknown key{hint or '.'} Allowed here: {', '.join(known)}"
            reasons.setdefault(f"{key}: ", []).append(why)
        elif problem["type"] == "missing":
            why = "missing; add it (see params.yaml in the repository's history for a default)"
            reasons.setdefault(f"{key}: ", []).append(why)
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "model_type":
                message = "a group of settings"
            # of a rule between settings the input is the whole group, and the message says which
            is_value = path and not isinstance(problem["input"], dict | list | BaseModel)
            shown = f" = {problem['input']!r}" if is_value else ""
            if path:
                message = f"{message[:1].lower()}{message[1:]}"
            reasons.setdefault(f"{key}{shown}: " if key else "", []).append(message)
    lines = []
    for key, messages in reasons.items():
        lines += [f"{key}{'; or '.join(messages)}"] if key else messages
    return lines


def _settings_path(problem: ErrorDetails, given: Any) -> list[str]:
    """The keys that lead to a setting, without pydantic's names for the types of a union."""
    path = []
    current = given
    location = problem["loc"]
    names_a_key = problem["type"] in ("missing", "extra_forbidden")
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        is_item = isinstance(current, list) and isinstance(part, int)
        if is_item or (isinstance(current, dict) and part in current):
            path.append(str(part))
            current = current[part]
        elif is_last and names_a_key:
            path.append(str(part))
    return path


def _known_keys(model: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = model
    for part in path:
        fields = getattr(current, "model_fields", {})
        if part not in fields:
            # an entry of a dict of models: checkpoints.<name>
            continue
        annotation = fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        current = next(
            (
                a
                for a in (annotation, *arguments)
                if isinstance(a, type) and issubclass(a, BaseModel)
            ),
            current,
        )
    return list(getattr(current, "model_fields", {}))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is closest to `name`; empty if none is close."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""

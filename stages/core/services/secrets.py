"""Secrets in environment variables, which must not occur in messages or published files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Final

_SECRET: Final = re.compile(r"TOKEN|SECRET|PASS|AUTH|CREDENTIAL|CONNECTION_STRING|_KEY$|APIKEY")
_SHORTEST: Final = 12
"""Characters of a secret that is looked for: a shorter one may stand anywhere by chance."""


def find_leaked_secret(content: bytes) -> str | None:
    """The first variable, by name, whose value occurs in `content` (plain or JSON-escaped).

    Else None.
    """
    for name, value in _secrets():
        if any(
            form.encode() in content
            for form in (
                value,
                json.dumps(value)[1:-1],
                json.dumps(value, ensure_ascii=False)[1:-1],
            )
        ):
            return name
    return None


def masked(text: str) -> str:
    """The text with every secret of the environment taken out."""
    for _, value in _secrets():
        text = text.replace(value, "***")
    return text


def _secrets() -> Iterator[tuple[str, str]]:
    """Name and value of each, the longest first: one may be part of another."""
    secrets = [
        (name, value)
        for name, value in os.environ.items()
        if _SECRET.search(name.upper()) and len(value) >= _SHORTEST
    ]
    # paths are not secret, e.g. SSH_AUTH_SOCK
    return iter(
        sorted(
            (each for each in secrets if not each[1].startswith("/")),
            key=lambda each: (-len(each[1]), each[0]),
        )
    )

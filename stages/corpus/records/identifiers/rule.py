"""A kind of identifier, and a pattern that finds one."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum, unique
from typing import Final, NamedTuple


@unique
class IdentifierKind(StrEnum):
    """What identifies a person, as in messages."""

    NAME = "a name"
    DATE = "a date"
    NUMBER = "a number of a record or a person"
    PHONE = "a phone number"
    EMAIL = "an e-mail address"
    WEB = "a web address"
    NETWORK = "a network address"
    POSTAL = "a postal address"
    AGE = "an age over 89"


class Rule(NamedTuple):
    """A pattern; `is_meant` decides on a match where the form alone does not.

    Patterns have no repetition without an upper bound, so a search takes time linear in the text.
    """

    kind: IdentifierKind
    pattern: re.Pattern[str]
    is_meant: Callable[[re.Match[str]], bool] | None = None

    def search(self, text: str) -> int | None:
        """The index of the first match that is meant."""
        for match in self.pattern.finditer(text):
            if self.is_meant is None or self.is_meant(match):
                return match.start()
        return None


CAPITAL: Final = r"[A-Z\u00c0-\u00d6\u00d8-\u00de\u0104\u0106\u010c\u0141\u015a\u0160\u017b\u017d]"
LETTER: Final = r"[^\W\d_]"
NAME: Final = rf"{CAPITAL}(?:{LETTER}|['-](?={LETTER})){{1,30}}"
"""A word with a capital: O'Neill, Smith-Jones, DOE."""
UNIT: Final = (
    r"(?! ?(?:mm|cm|m|mg|ml|mL|cc|ms|HU|kVp?|Gy|IU|cells?|nuclei|mitoses|fields|nodes|HPFs?|hpfs?"
    r"|patients|cases|controls|%)(?!\w))"
)
"""Not before what is measured or counted."""

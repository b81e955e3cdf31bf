"""Format of a whole completion by prompt style, for the format reward and the report."""

from __future__ import annotations

import re
from typing import Final

from stages.prompts.styles import Style

_BLOCK = r"<{0}>(?:(?!</?(?:think|answer)>).)*</{0}>"
_THINK = _BLOCK.format("think")
_ANSWER = _BLOCK.format("answer")
FORMATS: Final[dict[Style, re.Pattern[str]]] = {
    "think": re.compile(rf"\s*{_THINK}\s*{_ANSWER}\s*", re.DOTALL),
    "no-think": re.compile(rf"\s*{_ANSWER}\s*", re.DOTALL),
    "think-after": re.compile(rf"\s*{_ANSWER}\s*{_THINK}\s*", re.DOTALL),
}
"""For `fullmatch`: each block exactly once, in order, none inside another, and nothing outside.

Tags must be in lower case, as the prompt spells them; answer extraction ignores case.
"""
SHORTEST: Final[dict[Style, str]] = {
    "think": "<think></think><answer>A</answer>",
    "no-think": "<answer>A</answer>",
    "think-after": "<answer>A</answer><think></think>",
}
"""A shortest completion in each form."""

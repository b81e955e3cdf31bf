"""The errors a user can mend. A stage prints them without a traceback and exits with 1."""

from __future__ import annotations


class InputError(Exception):
    """Something given to the pipeline cannot be used; the message names file, record, value and remedy."""

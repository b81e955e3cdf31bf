"""Prefect's server, as programs of this project reach it."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from stages.errors import InputError

ADDRESS = "PREFECT_API_URL"
PASSWORD = "PREFECT_API_AUTH_STRING"  # noqa: S105  (its name)


def answers(variables: Mapping[str, str], seconds: float = 5.0) -> bool:
    """Does the server that these environment variables name answer, and let us in?"""
    request = Request(f"{variables[ADDRESS].rstrip('/')}/admin/version")  # noqa: S310  (the user's own setting)
    if password := variables.get(PASSWORD):
        request.add_header("Authorization", f"Basic {b64encode(password.encode()).decode()}")
    try:
        with urlopen(request, timeout=seconds):  # noqa: S310
            return True
    except HTTPError as error:
        if error.code in (401, 403):
            raise InputError(f"the Prefect server at {variables[ADDRESS]} asks for a password: set {PASSWORD} to user:password") from error
        return False
    except (URLError, OSError, ValueError):
        return False


def require_server() -> None:
    """InputError if PREFECT_API_URL names a server that does not answer; without it, flows bring one of their own."""
    if os.environ.get(ADDRESS) and not answers(os.environ):
        raise InputError(
            f"no Prefect server answers at {os.environ[ADDRESS]} ({ADDRESS}): start one with `make dashboard`, or unset it to run without"
        )

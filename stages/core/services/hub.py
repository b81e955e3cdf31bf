"""Classify errors of a Hugging Face hub as far as its answers allow."""

from __future__ import annotations

from typing import Literal

from stages.core.services.secrets import masked

HubErrorKind = Literal[
    "offline",
    "unreachable",
    "unknown id",
    "gated",
    "no such revision",
    "token refused",
    "no right",
    "hub failed",
]


def classify_error(error: BaseException) -> HubErrorKind | None:
    """The kind of an error of huggingface_hub or its HTTP library; None for any other error."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline"
    if isinstance(error, errors.GatedRepoError):
        return "gated"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "unknown id"
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        return {401: "token refused", 403: "no right"}.get(status, "hub failed")  # type: ignore[return-value]
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (error.__cause__ is not None and classify_error(error.__cause__)) or "unreachable"
    # huggingface_hub has changed its HTTP library twice: each has errors of its own for a host that
    # is not there
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[
        0
    ] in ("httpx", "httpx2", "requests"):
        return "unreachable"
    return None


def format_error(error: BaseException) -> str:
    """The error in one line, and no secret that the environment holds is in it."""
    return masked(" ".join(str(error).split()))[:300] or type(error).__name__


def endpoint() -> str:
    """The hub that is asked: HF_ENDPOINT, or the public one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)

"""Errors of the HTTP API: a code for programs, the message of the Python error, and a remedy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("tss.serve")

LONGEST = 4000
"""Maximum number of characters in a message."""

# code -> (status, remedy)
CODES: dict[str, tuple[int, str]] = {
    "invalid_json": (400, "send one JSON object, in UTF-8"),
    "unauthorized": (401, "send the server's token in the header Authorization: Bearer TOKEN"),
    "forbidden_origin": (403, "send requests from a page of this server, or from a program"),
    "forbidden_host": (403, "use one of these addresses, or start the server with --token-file FILE"),
    "unknown_task": (404, "name one of the tasks of GET /v1/tasks"),
    "not_found": (404, "see the paths in GET /openapi.json"),
    "method_not_allowed": (405, "see the methods in GET /openapi.json"),
    "body_too_slow": (408, "send the whole body at once"),
    "conflict": (409, "correct the folder as the message says and reload; until then the served tasks do not change"),
    "body_too_large": (413, "send fewer or shorter inputs"),
    "input_too_long": (413, "shorten the input, or split it"),
    "not_json": (415, "send the header Content-Type: application/json"),
    "invalid_request": (422, "see the request's schema in GET /openapi.json"),
    "invalid_input": (422, 'send the fields of its kind of task: {"text", "aspect"?}, {"tokens"} or {"source"}'),
    "invalid_parameters": (422, "omit the parameters to decode as the task was trained"),
    "cannot_answer": (422, "change the input as the message says"),
    "queue_full": (429, "retry after the seconds in the header Retry-After"),
    "client_gone": (499, "keep the connection open until the response arrives"),
    "internal": (500, "this is a bug in tss: report it with the server's log"),
    "task_unavailable": (503, "ask the server's operator, whose log names what is missing, then retry"),
    "shutting_down": (503, "retry on another server, or when this one is back"),
}


class ApiError(Exception):
    """Raised when a request is rejected or fails.

    Args:
        code: a key of `CODES`.
        message: the condition and the values.
        headers: additional headers of the response.
    """

    def __init__(self, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        # the message may quote the request, which can have any length and lone surrogates, which cannot be encoded
        message = message.encode(errors="replace").decode()
        self.message = message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
        super().__init__(self.message)
        self.code, self.headers = code, dict(headers or {})
        self.status, self.remedy = CODES[code]

    def content(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {"error": {"code": self.code, "message": self.message, "remedy": self.remedy}}


def fault(error: Exception) -> ApiError:
    """Return the error that the caller gets for an unexpected exception, and log the exception in full."""
    log.error("a request failed", exc_info=error)
    return ApiError("internal", f"{type(error).__name__} while answering")

"""Checks of every request before it is processed: token, origin, size of the body, and time to receive it."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tss.io import from_json, parse_reason, to_json
from tss.serve.errors import ApiError, fault
from tss.serve.service import Service

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/", "/favicon.ico", "/health", "/health/live", "/health/ready")
"""Paths that need no token: they reveal nothing about the tasks."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
PREDICT = "/v1/predict"
TASK = "tss.task"
"""Key of the task's name in a request's scope, set once such a task is known to exist."""
HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware that checks token, origin, body limits and JSON, adds security headers, and counts requests.

    Args:
        app: the application to protect.
        service: provides limits and metrics.
        token: the token that requests must send; None: no token, and only requests whose Host header is a loopback name
            are answered.
    """

    def __init__(self, app: App, service: Service, token: str | None) -> None:
        self._app, self._service = app, service
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Process one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in more if pair[0] not in given)]
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, await self._body(scope, receive), told)
        except ApiError as error:
            await reply(error, told)
        except Exception as error:
            if status:
                raise
            await reply(fault(error), told)
        finally:
            if scope["path"] == PREDICT:
                self._service.metrics.request(scope.get(TASK, ""), status, time.perf_counter() - started)

    def _check(self, scope: Message) -> None:
        """Raise ApiError unless the request is allowed."""
        headers = {name.lower(): value for name, value in scope["headers"]}
        host, origin = (headers.get(name, b"").decode("latin-1").lower() for name in (b"host", b"origin"))
        if origin and origin.split("://")[-1] != host:
            raise ApiError("forbidden_origin", f"a page of {origin} may not call {host}")
        if self._token is None:
            # A foreign page can reach loopback under its own host name (DNS rebinding), which is then its origin.
            if host.rsplit(":", 1)[0] not in LOOPBACK and host not in LOOPBACK:
                raise ApiError(
                    "forbidden_host",
                    f"the Host header is {host!r}, but a server without a token answers only to "
                    f"{', '.join(LOOPBACK[:-1])} and {LOOPBACK[-1]}",
                )
        elif scope["path"] not in OPEN:
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(given.strip(), self._token) or kind.lower() != b"bearer":
                raise ApiError(
                    "unauthorized", "the request does not have this server's token", {"WWW-Authenticate": "Bearer"}
                )

    async def _body(self, scope: Message, receive: Receive) -> Receive:
        """Read the body within the limits, check that it is JSON, and return a function that receives it again."""
        headers, settings = dict(scope["headers"]), self._service.settings
        announced = headers.get(b"content-length", b"0")
        parts: list[bytes] = []
        size = int(announced) if announced.isdigit() and len(announced) < 20 else 0
        try:
            async with asyncio.timeout(settings.body_seconds):
                more = True
                while more and size <= settings.max_body:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ApiError("client_gone", "the connection was closed before the body was complete")
                    parts.append(message.get("body", b""))
                    size, more = max(size, sum(map(len, parts))), message.get("more_body", False)
        except TimeoutError:
            raise ApiError("body_too_slow", f"the body did not end within {settings.body_seconds:g} seconds") from None
        if size > settings.max_body:
            raise ApiError("body_too_large", f"the body is over {settings.max_body} bytes")
        body = b"".join(parts)
        if body:
            _check_json(body, headers.get(b"content-type", b""))
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay


def _check_json(body: bytes, content_type: bytes) -> None:
    kind = content_type.partition(b";")[0].strip().lower()
    if kind != b"application/json":
        found = f"content type {kind.decode('latin-1')}" if kind else "no content type"
        raise ApiError("not_json", f"the body has {found}, expected application/json")
    try:
        from_json(body.decode())
    except ValueError as error:
        raise ApiError("invalid_json", f"the body is not JSON: {parse_reason(error)}") from None


async def reply(error: ApiError, send: Send) -> None:
    """Send an error as a response."""
    body = to_json(error.content()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    if error.code in ("body_too_large", "body_too_slow"):  # the server does not wait for the rest of the body
        headers["connection"] = "close"
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})

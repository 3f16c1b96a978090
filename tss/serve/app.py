"""HTTP API of a `Service`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from importlib import resources
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer

import tss
from tss.errors import TssError
from tss.io import to_json
from tss.run.answering import Answer
from tss.serve import schema
from tss.serve.batcher import Closed
from tss.serve.errors import ApiError, fault
from tss.serve.guard import TASK, Guard
from tss.serve.service import Service, result_of

Futures = Sequence[Future[Any]]
LINES = "application/x-ndjson"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorReply} for status in (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503)
}
CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": schema.ErrorReply}}


def create_app(service: Service, token: str | None = None) -> FastAPI:
    """Create the application; at the end of its lifespan, accepted requests are answered and the service is closed.

    Args:
        service: the service that answers requests.
        token: the token that requests must send, except for the page and /health; None: only requests from this machine
            are answered.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="tss serve", version=tss.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Answers of the tasks that one frozen model has learned.",
    )  # fmt: skip
    app.add_middleware(Guard, service=service, token=token)  # type: ignore[arg-type]
    _add_errors(app)
    _add_api(app, service, [] if token is None else [Depends(HTTPBearer(auto_error=False))])
    _add_page(app)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.content(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        message = f"{where}: {first['msg']}" if where else first["msg"]
        return await refused(request, ApiError("invalid_request", message))

    @app.exception_handler(404)
    async def not_found(request: Request, error: Exception) -> JSONResponse:
        return await refused(request, ApiError("not_found", f"there is nothing at {request.url.path[:200]!r}"))

    @app.exception_handler(405)
    async def not_allowed(request: Request, error: Exception) -> JSONResponse:
        message = f"{request.method[:20]} is not allowed for {request.url.path[:200]!r}"
        return await refused(request, ApiError("method_not_allowed", message))


def _add_api(app: FastAPI, service: Service, needs: list[Any]) -> None:
    @app.post("/v1/predict", response_model=schema.OneAnswer | schema.ManyAnswers, responses=ERRORS, dependencies=needs)
    async def predict(request: Request, body: schema.PredictRequest) -> Response:
        """Predict with one task, for one `input` or for several `inputs`.

        With `stream`, generated text is sent as lines of JSON (application/x-ndjson): `{"text"}` for each piece, then
        `{"done": true, "task", "prediction"}` or `{"error"}`.
        """
        if body.task in service.task_names:
            request.scope[TASK] = body.task
        given = None if body.parameters is None else body.parameters.model_dump(exclude_none=True)
        if body.inputs is None:
            named = [("input", body.input or {})]
        else:
            named = [(f"inputs[{i}]", one) for i, one in enumerate(body.inputs)]
        if len(named) > service.settings.max_inputs:
            most = service.settings.max_inputs
            raise ApiError("body_too_large", f"{len(named)} inputs are over this server's limit of {most}")
        if body.stream:
            return await _stream(service, request, body.task, named, given)
        futures = service.submit(body.task, named, given)
        found = await _results(service, request, futures)
        answers = [_plain(result_of(name, one)) for (name, _), one in zip(named, found, strict=True)]
        if body.inputs is None:
            return JSONResponse({"task": body.task, **answers[0]})
        return JSONResponse({"task": body.task, "predictions": answers})

    @app.get("/v1/tasks", response_model=schema.Tasks, response_model_exclude_none=True, dependencies=needs)
    async def tasks() -> dict[str, Any]:
        """List the tasks that are served, with their input fields, and their labels or decoding parameters."""
        return {"tasks": service.tasks()}

    @app.post("/v1/reload", response_model=schema.Reloaded, responses=ERRORS | CONFLICT, dependencies=needs)
    async def reload() -> dict[str, Any]:
        """Add tasks that were learned in the folder since it was last read; tasks that are served never change."""
        try:
            added = await asyncio.wrap_future(service.reload())
        except TssError as error:
            raise ApiError("conflict", str(error)) from None
        except Closed as error:
            raise ApiError("shutting_down", str(error)) from None
        return {"added": added, "tasks": service.task_names}

    @app.get("/metrics", response_class=Response, dependencies=needs)
    async def metrics() -> Response:
        """Return counts and times in the Prometheus text format."""
        return Response(service.metrics.render(), media_type=service.metrics.content_type)

    @app.get("/health", response_model=schema.Health)
    async def health() -> dict[str, bool]:
        """Report whether the process is alive and whether it accepts requests; the status is 200 in any case."""
        return {"live": True, "ready": service.ready}

    @app.get("/health/live", response_model=schema.Health)
    async def live() -> dict[str, bool]:
        """Liveness probe: 200 as long as the process responds."""
        return {"live": True, "ready": service.ready}

    @app.get("/health/ready", response_model=schema.Health, responses={503: {"model": schema.Health}})
    async def ready() -> JSONResponse:
        """Readiness probe: 200 while requests are accepted, else 503."""
        return JSONResponse({"live": True, "ready": service.ready}, 200 if service.ready else 503)


def _add_page(app: FastAPI) -> None:
    page = resources.files("tss.serve").joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hashes(page, 'script')}; style-src {_hashes(page, 'style')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    @app.get("/favicon.ico", include_in_schema=False)
    async def no_icon() -> Response:
        return Response(status_code=204)


def _hashes(page: str, element: str) -> str:
    """Return the hashes by which a content security policy allows a page's elements of this type, and no others."""
    texts = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)


def _plain(answer: Answer) -> dict[str, Any]:
    return {"prediction": answer.prediction, **answer.details}


async def _results(service: Service, request: Request, futures: Futures) -> list[Any]:
    """Wait for all results; if the client disconnects first, remove inputs that have not started from the queue."""
    return await _or_gone(
        service, request, futures, asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
    )


async def _or_gone(service: Service, request: Request, futures: Futures, awaited: asyncio.Future[Any]) -> Any:
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({awaited, gone}, return_when=asyncio.FIRST_COMPLETED)
        if awaited.done():
            return awaited.result()
        raise ApiError("client_gone", "the connection was closed before the answer was ready")
    finally:
        gone.cancel()
        if not awaited.done():
            awaited.cancel()
            service.cancel(futures)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    service: Service, request: Request, task: str, named: Sequence[tuple[str, Any]], parameters: Any
) -> Response:
    """Stream JSON lines: {"text"} for each generated piece, then {"done", "task", "prediction"} or {"error"}."""
    loop, texts = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def tell(text: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop was closed: no client is waiting
            loop.call_soon_threadsafe(texts.put_nowait, text)

    futures = service.submit(task, named, parameters, on_text=tell)
    futures[0].add_done_callback(lambda _: tell(None))
    first = await _or_gone(service, request, futures, asyncio.ensure_future(texts.get()))
    if first is None:  # finished without text, or failed: an error status can still be sent
        result_of(named[0][0], futures[0].exception() or futures[0].result())
    return StreamingResponse(_lines(service, task, named[0][0], futures, first, texts), media_type=LINES)


async def _lines(
    service: Service, task: str, called: str, futures: Futures, text: str | None, texts: asyncio.Queue[str | None]
) -> AsyncIterator[str]:
    sent = ""
    try:
        while text is not None:
            if text.startswith(sent) and text != sent:
                yield to_json({"text": text.removeprefix(sent)}) + "\n"
                sent = text
            text = await texts.get()
        try:
            answer = result_of(called, futures[0].exception() or futures[0].result())
        except Exception as error:  # the status was sent already, so report the error in a line
            known = error if isinstance(error, ApiError) else fault(error)
            yield to_json(known.content()) + "\n"
            return
        yield to_json({"done": True, "task": task, **_plain(answer)}) + "\n"
    finally:
        service.cancel(futures)

"""`tss serve`: serve the learned tasks of one model over HTTP."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tss.errors import ConfigError, TssError
from tss.serve.settings import ServeSettings

if TYPE_CHECKING:
    from tss.serve.service import Service

LEAST_TOKEN = 16
"""Minimum number of characters of a token, so that it cannot be guessed."""
OPTIONS = {
    "max_batch": (int, "N", "maximum batch size"),
    "max_wait_ms": (float, "MS", "maximum time that the oldest input waits for others while the model is idle"),
    "max_queue": (int, "N", "maximum number of waiting inputs; further requests get 429 with Retry-After"),
    "max_inputs": (int, "N", "maximum number of inputs in a request"),
    "max_body": (int, "BYTES", "maximum size of a request"),
    "max_tokens": (int, "N", "maximum number of tokens of an input; longer ones get 413"),
    "max_new_tokens": (
        int,
        "N",
        "maximum of new tokens that a request can set; a task's own value is always allowed",
    ),
    "max_beams": (int, "N", "maximum of beams that a request can set"),
    "max_connections": (int, "N", "maximum number of open connections; further ones get 503"),
    "grace_seconds": (int, "S", "time to answer accepted requests after SIGTERM"),
}


def register(subparsers: Any, parents: list[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    parser = subparsers.add_parser(
        "serve",
        parents=parents,
        help="serve learned tasks over HTTP, with a page to try them",
        description=__doc__,
        epilog="GET / is a page to try tasks; API: POST /v1/predict, GET /v1/tasks, POST /v1/reload, GET /health, "
        "GET /metrics and GET /openapi.json. On SIGTERM the server answers accepted requests and exits; on SIGHUP it "
        "loads tasks that were added to the folder. Needs: pip install 'tss[serve]'.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="run folder, or a folder written by model.tss.save")
    parser.add_argument(
        "--backbone", metavar="NAME", help="model folder or hub name (default: the one named in FOLDER)"
    )
    parser.add_argument("--tokenizer", metavar="NAME", help="folder or hub name (default: the backbone's own)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port, or 0 for any free one (default: 8000)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token that requests must send as Authorization: Bearer TOKEN; required unless HOST is a "
        "loopback address",
    )
    parser.add_argument(
        "--cache-mib",
        type=int,
        metavar="N",
        help="leave tasks in the folder, read each when it is first used, and keep at most N MiB of them in memory "
        "(default: read all at the start)",
    )
    for name, (kind, metavar, text) in OPTIONS.items():
        default = getattr(ServeSettings, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar=metavar, help=f"{text} (default: {default})"
        )
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    token = None if args.token_file is None else read_token(args.token_file)
    with listen(args.host, args.port, token is not None) as sock:
        try:
            import fastapi  # noqa: F401
            import prometheus_client  # noqa: F401
            import uvicorn  # noqa: F401
        except ModuleNotFoundError as error:
            raise TssError(f"the package {error.name} is not installed: pip install 'tss[serve]'") from error
        settings = _settings(args)
        if args.cache_mib is not None and args.cache_mib < 0:
            raise ConfigError(f"--cache-mib: at least 0, got {args.cache_mib}")
        from tss.cli.predict import open_folder
        from tss.serve.service import Service

        cache_bytes = None if args.cache_mib is None else args.cache_mib * 2**20
        service = Service(open_folder(args, cache_bytes=cache_bytes), settings)
        try:
            _serve(service, settings, token, sock)
        finally:
            service.close()
    return 0


def _settings(args: argparse.Namespace) -> ServeSettings:
    given = {name: value for name in OPTIONS if (value := getattr(args, name)) is not None}
    if "max_queue" in given:
        known = {one.name: one.default for one in dataclasses.fields(ServeSettings)}
        given.setdefault("max_inputs", min(known["max_inputs"], given["max_queue"]))
    return ServeSettings(**given)


def read_token(path: Path) -> str:
    """Read the token from a file.

    Raises:
        ConfigError: the file cannot be read, or does not contain one ASCII token that is long enough.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path}: cannot be read: {error}") from error
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--token-file {path}: expected one token of at least {LEAST_TOKEN} ASCII characters, found {len(token)}; "
            "create one: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return token


def listen(host: str, port: int, has_token: bool) -> socket.socket:
    """Return a socket bound to an address, which does not accept connections yet.

    Raises:
        ConfigError: other machines can reach the address and there is no token, or it cannot be bound.
    """
    if not 0 <= port < 2**16:  # some systems would use the port modulo 2**16
        raise ConfigError(f"--port {port} is not a valid port: give a port below {2**16}, or 0 for any free one")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port}: no such address ({error})") from error
    try:
        if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback and not has_token:
            raise ConfigError(
                f"--host {host} is reachable from other machines, so --token-file FILE is needed, or --host 127.0.0.1"
            )
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise ConfigError(f"--host {host} --port {port}: cannot listen there ({error}); name another") from error
    except BaseException:
        sock.close()
        raise
    return sock


def _serve(service: Service, settings: ServeSettings, token: str | None, sock: socket.socket) -> None:
    import uvicorn

    from tss.serve.app import create_app

    config = uvicorn.Config(
        create_app(service, token),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=settings.grace_seconds,
    )
    server = uvicorn.Server(config)
    # after answering all requests, uvicorn raises once more the signal that stopped it
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(
        signal.SIGHUP, lambda *_: threading.Thread(target=_reload, args=(service,), daemon=True).start()
    )
    host, port = sock.getsockname()[:2]
    named = f"[{host}]" if ":" in host else host
    print(f"tss: {len(service.task_names)} tasks at http://{named}:{port}/", file=sys.stderr, flush=True)
    try:
        server.run(sockets=[sock])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reload(service: Service) -> None:
    try:
        added = service.reload().result()
        print(f"tss: added {', '.join(added) or 'no task'}", file=sys.stderr, flush=True)
    except Exception as error:  # the server continues with its current tasks
        print(f"tss: nothing was added: {error}", file=sys.stderr, flush=True)

"""A server in a separate process, and a client that uses plain sockets, with control over every byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tss.serve.guard import PREDICT


class Server:
    """`tss serve` on a free loopback port; a context manager that ends it.

    Args:
        folder: folder of the tasks.
        backbone: backbone on which they were learned.
        options: options of the command line.
    """

    def __init__(self, folder: Path, backbone: str, *options: str) -> None:
        words = ["serve", str(folder), "--backbone", backbone, "--port", "0", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tss.cli.main", *words], stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        assert self.process.stderr is not None
        lines = []
        while not (found := re.search(r"tasks at http://127\.0\.0\.1:(\d+)/", line := self.process.stderr.readline())):
            lines.append(line)
            if not line:
                raise RuntimeError(f"the server did not start: {''.join(lines)}")
        self.port = int(found[1])
        while True:  # the line is printed before the first connection is accepted
            with contextlib.suppress(OSError):
                asyncio.run(Client(self.port).get("/health/ready"))
                return
            time.sleep(0.05)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait()

    def megabytes(self) -> float:
        """Return the resident memory."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", text)
        assert found is not None
        return int(found[1]) / 1024


@dataclass(frozen=True)
class Reply:
    """Response: status, headers with lower-case names, body, and seconds until it was complete."""

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection, kept open between requests; opened again after an error."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def predict(self, body: Any) -> Reply:
        """Send a request for predictions; raise OSError or EOFError if the connection breaks."""
        return await self.send("POST", PREDICT, json.dumps(body).encode())

    async def get(self, path: str) -> Reply:
        """Send a GET request."""
        return await self.send("GET", path)

    async def send(self, method: str, path: str, body: bytes = b"", type_: str = "application/json") -> Reply:
        """Send any request."""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Length: {len(body)}\r\n"
        return await self.raw(f"{head}Content-Type: {type_}\r\n\r\n".encode() + body)

    async def raw(self, data: bytes) -> Reply:
        """Send these bytes and return the response."""
        started = time.perf_counter()
        if self._streams is None or self._streams[0].at_eof():  # never opened, or closed by the server since
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        try:
            writer.write(data)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            length = headers.get("content-length")
            body = await reader.readexactly(int(length)) if length is not None else await reader.read()
            if length is None or headers.get("connection") == "close":
                self.close()
            return Reply(int(head[0].split()[1]), headers, body, time.perf_counter() - started)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

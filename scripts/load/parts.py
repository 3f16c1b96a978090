"""Parts of the load test; each returns its results, and fails if the server breaks a guarantee."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from scripts.load.wire import Client, Reply, Server

WORDS = (
    "the a battery screen phone camera is was good bad great poor very not Alice Bob Paris London visits buys".split()
)
BROKEN = (OSError, EOFError)
Body = dict[str, Any]
Known = dict[str, tuple[Body, Any]]


def some_input(task: str, rng: random.Random) -> Body:
    """Return an input of 3 to 30 words for a task of `random_tasks.kinds`."""
    words = rng.choices(WORDS, k=rng.randint(3, 30))
    if task.startswith("ner"):
        return {"tokens": words}
    return {"source" if task.startswith("drg") else "text": " ".join(words)}


def percentiles(seconds: Sequence[float]) -> str:
    """Return p50, p95 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return " / ".join(
        f"{1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))]:.0f}" for share in (0.5, 0.95, 0.99)
    )


async def closed_loop(port: int, bodies: Sequence[Body], clients: int) -> tuple[float, list[Reply]]:
    """Return seconds, and replies in the order of `bodies`: each client sends its next request after its reply."""
    replies: list[Any] = [None] * len(bodies)
    places = iter(range(len(bodies)))

    async def work() -> None:
        client = Client(port)
        for place in places:
            replies[place] = await client.predict(bodies[place])
        client.close()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(clients)))
    return time.perf_counter() - started, replies


def throughput(server: Server, name: str, tasks: list[str], count: int, clients: int) -> tuple[float, list[str]]:
    """Return requests per second and a row of the table, for `count` requests that use these tasks in turn."""
    rng = random.Random(0)
    bodies = [{"task": task, "input": some_input(task, rng)} for task in (tasks * count)[:count]]
    asyncio.run(closed_loop(server.port, bodies[: min(count, 2 * clients)], clients))  # warm
    seconds, replies = asyncio.run(closed_loop(server.port, bodies, clients))
    assert all(reply.status == 200 for reply in replies)
    rate = count / seconds
    return rate, [name, str(count), f"{rate:.0f}", percentiles([reply.seconds for reply in replies])]


def memory(server: Server, tasks: Sequence[str], count: int, clients: int) -> list[str]:
    """Return resident memory in MB before the requests and after every quarter of them."""
    seen = [server.megabytes()]
    for quarter in range(4):
        rng = random.Random(quarter)
        bodies = [{"task": rng.choice(tasks), "input": {}} for _ in range(count // 4)]
        for body in bodies:
            body["input"] = some_input(body["task"], rng)
        _, replies = asyncio.run(closed_loop(server.port, bodies, clients))
        assert all(reply.status == 200 for reply in replies)
        seen.append(server.megabytes())
    return [f"{megabytes:.0f}" for megabytes in seen]


def overload(server: Server, tasks: Sequence[str], rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at a fixed rate without waiting for replies; return statuses, latency of answered ones, memory."""
    rng, before = random.Random(1), server.megabytes()
    statuses: Counter[Any] = Counter()
    answered, waits, idle = [], [], []

    async def one() -> None:
        task = rng.choice(tasks)
        client = idle.pop() if idle else Client(server.port)
        try:
            reply = await client.predict({"task": task, "input": some_input(task, rng)})
        except BROKEN as error:
            statuses[type(error).__name__] += 1
            return
        idle.append(client)
        statuses[reply.status] += 1
        if reply.status == 200:
            answered.append(reply.seconds)
        else:
            waits.append(reply.headers.get("retry-after"))

    async def everything() -> float:
        started, running, sent = time.perf_counter(), set(), 0
        while (now := time.perf_counter() - started) < seconds:
            for _ in range(int(now * rate) - sent):
                running.add(task := asyncio.create_task(one()))
                task.add_done_callback(running.discard)
                sent += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*running)
        return sent / seconds

    offered = asyncio.run(everything())
    assert all(wait is not None for wait in waits)
    assert set(statuses) <= {200, 429}, statuses
    return {"offered per second": round(offered), "statuses": dict(statuses), "answered in ms": percentiles(answered),
            "memory in MB": f"{before:.0f} to {server.megabytes():.0f}"}  # fmt: skip


def known_answers(server: Server, tasks: Sequence[str]) -> Known:
    """Return task -> (request, prediction), with requests sent one at a time."""
    rng = random.Random(2)
    bodies = [{"task": task, "input": some_input(task, rng)} for task in tasks]
    _, replies = asyncio.run(closed_loop(server.port, bodies, 1))
    return {body["task"]: (body, reply.json()["prediction"]) for body, reply in zip(bodies, replies, strict=True)}


def interrupted(
    server: Server, known: Known, number: signal.Signals, clients: int, after: float
) -> tuple[Counter[str], int]:
    """Return how requests of many clients end when a signal ends the server, and its exit code."""
    ends: Counter[str] = Counter()
    stopped: list[float] = []

    async def work(seed: int) -> None:
        rng, client = random.Random(seed), Client(server.port)
        while not stopped or time.perf_counter() < stopped[0] + 30:
            body, expected = known[rng.choice(list(known))]
            sent = time.perf_counter()
            try:
                reply = await client.predict(body)
            except BROKEN as error:
                if isinstance(error, ConnectionRefusedError):
                    return
                early = stopped and sent < stopped[0] - 0.1
                ends["connection closed, sent before the signal" if early else "connection closed"] += 1
                continue
            right = reply.status == 200 and reply.json()["prediction"] == expected
            ends["right answer" if right else f"status {reply.status}" if reply.status != 200 else "wrong"] += 1

    async def everything() -> None:
        working = [asyncio.create_task(work(seed)) for seed in range(clients)]
        await asyncio.sleep(after)
        stopped.append(time.perf_counter())
        server.process.send_signal(number)
        await asyncio.gather(*working)

    asyncio.run(everything())
    return ends, server.process.wait()


def check_known(server: Server, known: Known) -> None:
    """Raise AssertionError unless every prediction is unchanged."""
    _, replies = asyncio.run(closed_loop(server.port, [body for body, _ in known.values()], 8))
    wrong = [task for (task, (_, expected)), reply in zip(known.items(), replies, strict=True)
             if reply.json().get("prediction") != expected]  # fmt: skip
    assert not wrong, wrong


def hostile_request(rng: random.Random, task: str, port: int) -> tuple[bytes, bool]:
    """Return the bytes of a malformed or malicious request, and whether it is complete, so that it gets a reply."""
    good = json.dumps({"task": task, "input": some_input(task, rng)}).encode()

    def request(body: bytes, more: str = "", method: str = "POST", path: str = "/v1/predict") -> bytes:
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{more}"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body

    def flipped() -> bytes:
        data = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return request(bytes(data))

    deep = b'{"input":' * rng.randint(100, 20_000)
    values = [
        "null",
        "[]",
        "{}",
        '"x"',
        "1e999",
        "-0",
        "9" * 5000,
        '"\\ud800"',
        '["a"]',
        '{"text": {"text": []}}',
        "NaN",
    ]
    makers: list[Callable[[], bytes]] = [
        flipped,
        lambda: request(good[: rng.randrange(len(good))]),
        lambda: request(rng.randbytes(rng.randint(0, 3000))),
        lambda: request(deep),
        lambda: request(f'{{"task": "{task}", "input": {rng.choice(values)}}}'.encode()),
        lambda: request(f'{{"task": {rng.choice(values)}, "inputs": [{rng.choice(values)}]}}'.encode()),
        lambda: request(b'{"task": "' + b"a" * rng.randint(1, 400_000) + b'"}'),
        lambda: request(good, "Host: evil.example\r\n"),
        lambda: request(good, "Origin: http://evil.example\r\n"),
        lambda: request(good, f"X-Long: {'x' * rng.randint(1, 90_000)}\r\n"),
        lambda: request(good, method=rng.choice(["PUT", "DELETE", "TRACE", "BREW"])),
        lambda: request(b"", path=rng.choice(["/../../etc/passwd", "/%2e%2e/x", "/v1/predict/../reload", "//evil/"])),
        lambda: request(json.dumps({"task": task, "input": {"text": "a " * 100_000}}).encode()),
        lambda: request(json.dumps({"task": task, "input": {"text": "\u202e\u0000<script>" * 9}}).encode()),
    ]
    endless: list[Callable[[], bytes]] = [
        lambda: request(good, "Transfer-Encoding: chunked\r\n"),
        lambda: request(good)[: rng.randrange(len(good))],
        lambda: rng.randbytes(rng.randint(1, 3000)),
        lambda: b"GET / HTTP/1.1\r\nHost" + rng.randbytes(50),
    ]
    whole = rng.random() < 0.8
    return rng.choice(makers if whole else endless)(), whole


def fuzz(server: Server, tasks: Sequence[str], count: int, clients: int) -> dict[Any, int]:
    """Return how `count` hostile requests end; no status may be 500 or more."""
    statuses: Counter[Any] = Counter()
    seeds = iter(range(count))

    async def work() -> None:
        for seed in seeds:
            rng, client = random.Random(seed), Client(server.port)
            data, whole = hostile_request(rng, rng.choice(list(tasks)), server.port)
            try:
                reply = await asyncio.wait_for(client.raw(data), 60 if whole else 0.3)
                statuses[reply.status] += 1
                assert reply.status < 500, (seed, reply)
            except (*BROKEN, ValueError, IndexError, asyncio.LimitOverrunError, TimeoutError) as error:
                if whole and isinstance(error, TimeoutError):
                    raise RuntimeError(f"no reply to hostile request {seed}") from error
                statuses["left unfinished" if isinstance(error, TimeoutError) else "closed"] += 1
            client.close()

    async def everything() -> None:
        await asyncio.gather(*(work() for _ in range(clients)))

    asyncio.run(everything())
    return dict(sorted(statuses.items(), key=str))


def slow_clients(server: Server, task: str, slow: int, count: int) -> list[str]:
    """Return p50, p95 and p99 in ms of a client without and with `slow` others that send a byte now and then."""
    rng = random.Random(3)
    bodies = [{"task": task, "input": some_input(task, rng)} for _ in range(count)]

    async def drip() -> None:
        head = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n"
        while True:  # reconnect when the server closes the connection
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            try:
                for byte in head + b" " * 5000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.05)
            except OSError:
                pass
            finally:
                writer.close()

    async def beside(others: int) -> str:
        dripping = [asyncio.create_task(drip()) for _ in range(others)]
        await asyncio.sleep(0.5)
        _, replies = await closed_loop(server.port, bodies, 1)
        for one in dripping:
            one.cancel()
        await asyncio.gather(*dripping, return_exceptions=True)
        assert all(reply.status == 200 for reply in replies)
        return percentiles([reply.seconds for reply in replies])

    return [asyncio.run(beside(0)), asyncio.run(beside(slow))]

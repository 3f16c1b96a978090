"""Who may ask, slow and vanished clients, tasks that come, and the end."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import tss
from scripts.load.random_tasks import add_random_tasks, save_random_tasks
from tss.run.backbone import load_backbone
from tss.run.learned import open_learned
from tss.serve.service import Service
from tss.serve.settings import ServeSettings

from .conftest import INPUTS, KINDS, TOKEN, Gate, ask, on_loopback, until
from .test_requests import refused


def test_a_token_is_asked_for_everything_but_the_page_and_health(served):
    client = served(token=TOKEN)
    assert ask(client).status_code == 200
    open_ = {"/", "/health", "/health/live", "/health/ready"}
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}):
        client.headers.pop("Authorization", None)
        client.headers.update(headers)
        for path in ("/v1/tasks", "/metrics", "/openapi.json", "/v1/other", *open_):
            assert client.get(path).status_code == (200 if path in open_ else 401)
        response = ask(client)
        refused(response, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        refused(client.post("/v1/reload"), "unauthorized")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"Host": "localhost:8000"}, None),
        ({"Host": "[::1]:8000"}, None),
        ({"Host": "127.0.0.1", "Origin": "http://127.0.0.1"}, None),
        ({"Host": "evil.example"}, "forbidden_host"),  # a name that was bound to loopback
        ({"Host": "evil.example:8000", "Origin": "http://evil.example:8000"}, "forbidden_host"),
        ({"Origin": "http://evil.example"}, "forbidden_origin"),
        ({"Origin": "null"}, "forbidden_origin"),
    ],
)
def test_without_a_token_pages_of_elsewhere_are_refused(client, headers, code):
    for response in (client.get("/v1/tasks", headers=headers), client.post("/v1/reload", headers=headers)):
        if code is None:
            assert response.status_code == 200
        else:
            refused(response, code)


def test_a_wrong_host_is_told_which_are_right(client):
    response = client.get("/v1/tasks", headers={"Host": "evil.example"})
    assert response.json()["error"] == {
        "code": "forbidden_host",
        "message": "the Host header is 'evil.example', but a server without a token answers only to localhost, "
        "127.0.0.1 and [::1]",
        "remedy": "use one of these addresses, or start the server with --token-file FILE",
    }


def test_a_token_admits_any_name_of_the_host(served):
    assert served(token=TOKEN).get("/v1/tasks", headers={"Host": "tss.example"}).status_code == 200


def raw(port, *, body=b"", head=b"", path=b"/v1/predict"):
    """A connection on which a request was sent."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=60)
    sock.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n" + head
                 + b"\r\n" + body)  # fmt: skip
    return sock


def read(sock):
    """(status, body) of a response after which the connection is closed, or that has a length."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (part := sock.recv(65536)):
            return None, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), None)
    while length is None or len(body) < length:
        if not (part := sock.recv(65536)):
            break
        body += part
    return int(head.split()[1]), body


@pytest.fixture
def service(learned):
    made = []

    def make(**settings):
        made.append(Service(learned, ServeSettings(**{"max_wait_ms": 0, **settings})))
        return made[-1]

    yield make
    for one in made:
        one.close()


BODY = json.dumps({"task": "asc/a", "input": INPUTS["asc/a"]}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


def test_clients_that_go_away_are_taken_out_of_the_queue(service, monkeypatch):
    made = service()
    gate = Gate(made, monkeypatch)
    with on_loopback(made) as (_, port):
        first = raw(port, body=BODY, head=LENGTH)
        assert gate.reached.wait(60)
        others = [raw(port, body=BODY, head=LENGTH) for _ in range(3)]
        until(lambda: made.waiting == 3)
        for sock in others[:2]:
            sock.close()
        until(lambda: made.waiting == 1)
        gate.open()
        assert [read(sock)[0] for sock in (first, others[2])] == [200, 200]
    assert [len(batch) for batch in gate.batches] == [1, 1]


def test_a_body_that_does_not_come_is_not_waited_for(service):
    with on_loopback(service(body_seconds=0.1)) as (_, port):
        status, body = read(raw(port, body=BODY[:5], head=LENGTH))
        assert (status, json.loads(body)["error"]["code"]) == (408, "body_too_slow")
        assert read(raw(port, body=BODY, head=LENGTH))[0] == 200


def test_slow_clients_hold_nobody_up(service):
    with on_loopback(service(body_seconds=60)) as (_, port):
        slow = [raw(port, body=BODY[:-1], head=LENGTH) for _ in range(20)]
        assert read(raw(port, body=BODY, head=LENGTH))[0] == 200
        for sock in slow:
            sock.sendall(BODY[-1:])
        assert [read(sock)[0] for sock in slow] == [200] * 20


def test_stopping_answers_what_was_accepted_and_takes_nothing_more(service, monkeypatch):
    made = service(max_batch=2)
    gate = Gate(made, monkeypatch)
    with on_loopback(made) as (server, port):
        sockets = [raw(port, body=BODY, head=LENGTH) for _ in range(5)]
        assert gate.reached.wait(60)
        until(lambda: made.waiting == 5 - len(gate.batches[0]))
        server.should_exit = True
        until(lambda: not server.servers[0].is_serving())
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
        gate.open()
        assert [read(sock)[0] for sock in sockets] == [200] * 5
    assert not made.ready


def test_readiness_ends_with_the_service(served):
    client = served()
    assert client.get("/health/ready").status_code == 200
    client.service.close()
    assert client.get("/health/ready").status_code == 503
    assert client.get("/health").json() == {"live": True, "ready": False}
    assert client.get("/health/live").status_code == 200
    refused(ask(client), "shutting_down")
    refused(client.post("/v1/reload"), "shutting_down")


@pytest.fixture
def own(saved, tmp_path, tiny_backbone, request):
    """A folder of the same tasks that may change, and what was opened from it."""
    folder = tmp_path / "own"
    shutil.copytree(saved, folder)
    return folder, open_learned(folder, backbone=str(tiny_backbone), cache_bytes=getattr(request, "param", None))


@pytest.mark.parametrize("own", [None, 1000], ids=["all read", "cache of 1000 bytes"], indirect=True)
def test_new_tasks_of_the_folder_answer_after_a_reload(own, served, tiny_backbone):
    folder, opened = own
    client = served(of=opened)
    before = {task: ask(client, task).json() for task in KINDS}
    assert client.post("/v1/reload").json() == {"added": [], "tasks": list(KINDS)}
    model = tss.load(load_backbone(str(tiny_backbone)).model, folder)
    add_random_tasks(model, {"asc/new": KINDS["asc/b"]})
    model.tss.save(folder)
    refused(ask(client, "asc/new", {"text": "good"}), "unknown_task")
    assert client.post("/v1/reload").json() == {"added": ["asc/new"], "tasks": [*KINDS, "asc/new"]}
    assert ask(client, "asc/new", {"text": "good"}).json()["prediction"] in ("x", "y", "z")
    assert {task: ask(client, task).json() for task in KINDS} == before


def test_a_reload_never_changes_a_task(own, served, tmp_path, tiny_backbone):
    folder, opened = own
    client = served(of=opened)
    before = ask(client).json()
    other = save_random_tasks(
        tmp_path / "other", {"asc/z": KINDS["asc/b"], "asc/a": KINDS["asc/a"]}, str(tiny_backbone)
    )
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    assert "'asc/a' is not the one that is loaded" in refused(client.post("/v1/reload"), "conflict")
    (folder / "tss.json").write_text("{")
    assert "tss.json" in refused(client.post("/v1/reload"), "conflict")
    assert ask(client).json() == before
    assert client.service.task_names == list(KINDS)


def test_a_program_adds_a_task_while_it_serves(own, served):
    client = served(of=own[1])
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, client, task) for task in list(INPUTS) * 3]
        client.service.change(lambda model: add_random_tasks(model, {"asc/here": KINDS["asc/a"]})).result(60)
        assert ask(client, "asc/here", {"text": "good"}).status_code == 200
        assert all(one.result(60).status_code == 200 for one in asked)
    client.service.change(lambda model: model.tss.delete_task("asc/here")).result(60)
    refused(ask(client, "asc/here", {"text": "good"}), "unknown_task")


def test_an_abandoned_loop_stops_no_answer(learned):
    """A stream whose event loop is gone tells nobody, and the next request is answered."""
    service = Service(learned, ServeSettings(max_wait_ms=0))
    loop = asyncio.new_event_loop()
    loop.close()
    reached = threading.Event()

    def tell(text):
        reached.set()
        loop.call_soon_threadsafe(print)

    (future,) = service.submit("drg/d", [("input", INPUTS["drg/d"])], on_text=tell)
    assert isinstance(future.exception(60), RuntimeError)
    assert reached.is_set()
    (future,) = service.submit("drg/d", [("input", INPUTS["drg/d"])])
    assert future.result(60).prediction
    service.close()


@pytest.mark.parametrize("own", [0], indirect=True)
def test_a_task_whose_file_is_gone_is_unavailable_and_no_other_is(own, served):
    folder, opened = own
    client = served(of=opened)
    before = {task: ask(client, task).json() for task in KINDS}
    (path,) = folder.glob("tasks/*-asc-a-*.safetensors")
    path.rename(folder / "aside")
    ask(client, "asc/b")  # what was asked for last stays in memory
    told = ask(client, "asc/a")
    assert told.status_code == 503
    refused(told, "task_unavailable")
    assert str(folder) not in told.text
    assert ask(client, "asc/b").json() == before["asc/b"]
    (folder / "aside").rename(path)
    assert ask(client, "asc/a").json() == before["asc/a"]

"""Six random tasks on the tiny backbone, served in this process or by uvicorn on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time

import pytest
import uvicorn
from fastapi.testclient import TestClient

import tss
from scripts.load.random_tasks import save_random_tasks
from tss.run.config import load_config
from tss.run.learned import open_learned
from tss.serve.app import create_app
from tss.serve.service import Service
from tss.serve.settings import ServeSettings

KINDS = {
    "asc/a": tss.Classification(labels=("no", "yes")),
    "asc/b": tss.Classification(labels=("x", "y", "z")),
    "ner/c": tss.Extraction(labels=("O", "B-PER", "B-LOC")),
    "drg/d": tss.Generation(num_beams=1, max_new_tokens=5),
    "sum/beams": tss.Generation(num_beams=2, max_new_tokens=5),
}
INPUTS = {
    "asc/a": {"text": "the phone is good"},
    "asc/b": {"text": "the phone is good", "aspect": "battery"},
    "ner/c": {"tokens": ["Alice", "visits", "Paris"]},
    "drg/d": {"source": "the phone is good"},
    "sum/beams": {"source": "Alice visits Paris"},
}
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="session")
def saved(tmp_path_factory, tiny_backbone):
    """The folder of the tasks."""
    return save_random_tasks(tmp_path_factory.mktemp("served") / "saved", KINDS, str(tiny_backbone))


@pytest.fixture(scope="session")
def learned(saved, tiny_backbone):
    """The tasks, opened; tests leave them as they are."""
    opened = open_learned(saved, backbone=str(tiny_backbone))
    config = load_config({"backbone": str(tiny_backbone), "training": {"source_length": 24}})
    return dataclasses.replace(opened, config=config)


@pytest.fixture
def served(learned):
    """A function of settings: a client of an application in this process, which has `service`."""
    with contextlib.ExitStack() as running:

        def serve(*, token=None, of=learned, **settings):
            service = Service(of, ServeSettings(**{"max_wait_ms": 0, **settings}))
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            app = create_app(service, token)
            client = running.enter_context(TestClient(app, base_url="http://127.0.0.1", headers=headers))
            client.service = service
            return client

        yield serve


@pytest.fixture
def client(served):
    return served()


def ask(client, task="asc/a", given=None, **more):
    body = {"task": task, **more}
    if "inputs" not in more:
        body["input"] = INPUTS[task] if given is None else given
    return client.post("/v1/predict", json=body)


class Gate:
    """Stops the model's thread at the next batch until it is opened; remembers what batches there were."""

    def __init__(self, service, monkeypatch) -> None:
        self.batches, self._open, self.reached = [], threading.Event(), threading.Event()
        run = service._batcher._run

        def gated(questions):
            self.batches.append([question.task for question in questions])
            self.reached.set()
            assert self._open.wait(60)
            return run(questions)

        monkeypatch.setattr(service._batcher, "_run", gated)

    def open(self) -> None:
        self._open.set()


def until(condition, seconds=60.0):
    """Wait for what another thread will bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@contextlib.contextmanager
def on_loopback(service, token=None, **settings):
    """(uvicorn's server, its port) for an application of the service."""
    config = uvicorn.Config(create_app(service, token), http="h11", ws="none", log_level="error", **settings)
    server, sock = uvicorn.Server(config), socket.socket()
    sock.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    until(lambda: server.started)
    try:
        yield server, sock.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()

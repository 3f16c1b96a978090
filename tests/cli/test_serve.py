"""`tss serve` as a process: who it listens to, signals, and what it says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

import tss as package
from scripts.load.random_tasks import add_random_tasks
from tss.run.backbone import load_backbone

TOKEN = "a-token-of-some-length"


def only_line(done) -> str:
    assert done.code == 1, done.err
    (line,) = done.err.splitlines()
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_token(tss, finished_run, host):
    line = only_line(tss("serve", finished_run, "--host", host, "--port", 0))
    assert f"--host {host} is reachable from other machines, so --token-file FILE is needed" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [("short", "at least 16"), ("two words of a token", "one token"), ("", "found 0"), (None, "read")],
)
def test_a_token_that_is_none_is_refused(tss, finished_run, tmp_path, text, expected):
    if text is not None:
        (tmp_path / "token").write_text(text)
    assert expected in only_line(tss("serve", finished_run, "--token-file", tmp_path / "token", "--port", 0))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--port", 99999], "--port 99999"),
        (["--host", "no.such.host.invalid"], "no such address"),
        (["--port", 0, "--max-batch", 0], "max_batch=0 must be at least 1"),
        (["--port", 0, "--max-queue", 4, "--max-inputs", 5], "max_inputs=5 exceeds max_queue=4"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tss, finished_run, words, expected):
    assert expected in only_line(tss("serve", finished_run, *words))


def test_a_folder_without_tasks_is_told_in_one_line(tss, tmp_path):
    assert "tss.json" in only_line(tss("serve", tmp_path, "--port", 0))


def test_without_its_packages_it_says_what_to_install(tss, finished_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'tss[serve]'" in only_line(tss("serve", finished_run, "--port", 0))


@contextlib.contextmanager
def running(folder, *words):
    """(the process, its address) of a server; killed at the end."""
    command = [sys.executable, "-m", "tss.cli.main", "serve", str(folder), "--port", "0", *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        line = process.stderr.readline()
        found = re.search(r"tss: (\d+) tasks at (http://127\.0\.0\.1:\d+/)", line)
        assert found, line
        yield process, found[2]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def call(address, path, body=None, token=None):
    request = urllib.request.Request(address + path, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    end = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except urllib.error.URLError as error:  # it is told where it listens before it does
            if not isinstance(error.reason, ConnectionRefusedError) or time.monotonic() > end:
                raise


def test_a_server_answers_takes_up_tasks_and_ends(tss, finished_run, cli_data, tiny_backbone, tmp_path):
    folder = tmp_path / "saved"
    model = package.load(load_backbone(str(tiny_backbone)).model, finished_run)
    model.tss.save(folder)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    words = ["--backbone", tiny_backbone, "--token-file", tmp_path / "token", "--max-wait-ms", 0]
    with running(folder, *words) as (process, address):
        given = {"text": "the phone is good"}
        status, answer = call(address, "v1/predict", {"task": "asc/phones", "input": given}, TOKEN)
        (tmp_path / "in.jsonl").write_text(json.dumps(given))
        asked = ["--backbone", tiny_backbone, "--task", "asc/phones", "--input", tmp_path / "in.jsonl"]
        expected = json.loads(tss("predict", folder, *asked).out)["prediction"]
        assert (status, answer["prediction"]) == (200, expected)
        assert call(address, "v1/tasks")[0] == 401
        add_random_tasks(model, {"asc/new": package.Classification(labels=("a", "b"))})
        model.tss.save(folder)
        process.send_signal(signal.SIGHUP)
        assert process.stderr.readline() == "tss: added asc/new\n"
        assert call(address, "v1/predict", {"task": "asc/new", "input": given}, TOKEN)[0] == 200
        shutil.rmtree(folder)
        process.send_signal(signal.SIGHUP)
        assert process.stderr.readline().startswith("tss: nothing was added: ")
        assert call(address, "v1/predict", {"task": "asc/new", "input": given}, TOKEN)[0] == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""

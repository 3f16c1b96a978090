"""The page: nothing from elsewhere, a strict policy, and what a person sees."""

from __future__ import annotations

import re
from importlib import resources

import pytest

import tss
from scripts.load.random_tasks import save_random_tasks
from tss.run.learned import open_learned
from tss.serve.service import Service
from tss.serve.settings import ServeSettings

from .browser import Browser, find
from .conftest import KINDS, TOKEN, on_loopback

PAGE = resources.files("tss.serve").joinpath("page.html").read_text()
HOSTILE = "<img src=x onerror=window.hit=1>"


def test_the_page_asks_for_nothing_elsewhere():
    assert not re.findall(r"https?:|url\(|@import|//[a-z]|<link|\bsrc=", PAGE)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", PAGE)
    assert not re.findall(r"\son[a-z]+=|\sstyle=", PAGE)  # the policy would refuse them


def test_the_policy_lets_in_the_pages_own_parts_alone(client):
    response = client.get("/")
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for kind in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", policy[kind])
    assert response.text == PAGE
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if (program := find()) is None:
        pytest.skip("no Chromium on this machine")
    with Browser(program, tmp_path_factory.mktemp("profile") / "new") as one:
        yield one


def fill(browser, **values):
    for name, value in values.items():
        browser.run(f"document.getElementById({name!r}).value = {value!r}")
    browser.run("document.getElementById('task').dispatchEvent(new Event('change'))")


def answer(browser, **values):
    fill(browser, **values)
    browser.run("document.getElementById('ask').click()")
    browser.until("!document.getElementById('ask').disabled")
    return browser.run("document.getElementById('answer').innerText")


def test_a_person_picks_a_task_types_and_sees_how_sure_it_is(browser, tmp_path, tiny_backbone):
    kinds = {**KINDS, HOSTILE: tss.Classification(labels=(HOSTILE, "<script>window.hit=1</script>"))}
    folder = save_random_tasks(tmp_path / "saved", kinds, str(tiny_backbone))
    service = Service(open_learned(folder, backbone=str(tiny_backbone)), ServeSettings(max_wait_ms=0))
    try:
        with on_loopback(service, TOKEN) as (_, port):
            browser.open(f"http://127.0.0.1:{port}/", width=390)
            browser.until("!document.getElementById('locked').hidden")
            for given, shown in (("a-token-of-another-server", "locked"), (TOKEN, "work")):
                browser.run(f"document.getElementById('token').value = {given!r}")
                browser.run("document.querySelector('#token-form button').click()")
                browser.until(
                    f"!document.getElementById({shown!r}).hidden"
                    + (" && document.getElementById('token-error').textContent" if shown == "locked" else "")
                )
            assert browser.run("[...document.getElementById('task').options].map((one) => one.value)") == list(kinds)
            label = answer(browser, task="asc/b", text="the phone is good")
            assert re.match(r"[xyz]\n", label)
            assert sorted(re.findall(r"^[xyz]$", label, re.M))[-3:] == sorted(set(re.findall(r"^[xyz]$", label, re.M)))
            assert len(re.findall(r"\d+\.\d %", label)) == 3
            words = answer(browser, task="ner/c", text=f"Alice {HOSTILE}")
            assert len(re.findall(r"\d+\.\d %", words)) == 2 + HOSTILE.count(" ")
            greedy, searched = (
                answer(browser, task="drg/d", text="good"),
                answer(browser, task="sum/beams", text="good"),
            )
            assert greedy
            assert searched
            assert HOSTILE in answer(browser, task=HOSTILE, text=HOSTILE)
            assert answer(browser, task="asc/a", text=" ") == ""
            assert 'field "text" is empty' in browser.run("document.getElementById('error').textContent")
            assert browser.run("window.hit") is None
            assert browser.run("document.documentElement.scrollWidth") <= 390
            assert all(address.startswith(f"http://127.0.0.1:{port}/") for address in browser.addresses()
                       if address.startswith("http"))  # fmt: skip
            unexpected = [text for text in browser.complaints() if "401" not in text and "422" not in text]
            assert unexpected == []
    finally:
        service.close()

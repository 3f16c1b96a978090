"""Requests and what they get: answers, typed refusals, limits, streams."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from tss.run.learned import Learned
from tss.serve.errors import CODES
from tss.tasks import Generation

from .conftest import INPUTS, KINDS, TOKEN, Gate, ask, until


def refused(response, code):
    """The message of a typed refusal."""
    error = response.json()["error"]
    assert (error["code"], response.status_code) == (code, CODES[code][0]), error
    assert error["remedy"] == CODES[code][1]
    return error["message"]


@pytest.mark.parametrize("task", INPUTS)
def test_answers_are_those_of_prediction(client, learned, task):
    response = ask(client, task)
    assert response.status_code == 200
    answer = response.json()
    (expected,) = learned.predict([(task, INPUTS[task])])
    assert (answer["task"], answer["prediction"]) == (task, expected)
    assert ("confidence" in answer) == (KINDS[task].kind != "generation")
    assert ("scores" in answer) == (KINDS[task].kind == "classification")


def test_several_inputs_of_a_task(client, learned):
    texts = ["good", "bad phone", "the"]
    answer = ask(client, inputs=[{"text": text} for text in texts]).json()
    assert answer["task"] == "asc/a"
    expected = learned.predict([("asc/a", {"text": text}) for text in texts])
    assert [one["prediction"] for one in answer["predictions"]] == expected


def test_requests_of_different_tasks_share_a_batch(served, monkeypatch):
    client = served()
    gate = Gate(client.service, monkeypatch)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(ask, client, "sum/beams")
        assert gate.reached.wait(60)
        labelled = [pool.submit(ask, client, task) for task in ("asc/a", "asc/b", "ner/c")]
        until(lambda: client.service.waiting == 3)
        text = pool.submit(ask, client, "drg/d")
        until(lambda: client.service.waiting == 4)
        gate.open()
        assert all(future.result(60).status_code == 200 for future in [first, *labelled, text])
    assert [sorted(batch) for batch in gate.batches] == [["sum/beams"], ["asc/a", "asc/b", "ner/c"], ["drg/d"]]


def test_a_full_queue_refuses_with_a_time_to_wait(served, monkeypatch):
    client = served(max_queue=2, max_inputs=2)
    gate = Gate(client.service, monkeypatch)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, client)
        assert gate.reached.wait(60)
        waiting = pool.submit(ask, client, inputs=[INPUTS["asc/a"]] * 2)
        until(lambda: client.service.waiting == 2)
        response = ask(client)
        assert "2 inputs are waiting, and 1 more would exceed the limit of 2" in refused(response, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        gate.open()
        assert [one.result(60).status_code for one in (first, waiting)] == [200, 200]
    assert ask(client).status_code == 200


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({"task": "asc/none", "input": {"text": "a"}}, "unknown_task", "it has: asc/a, asc/b"),
        ({"task": "asc/a", "input": {"text": ""}}, "invalid_input", 'input: field "text" is empty'),
        ({"task": "asc/a", "input": {"tokens": ["a"]}}, "invalid_input", 'field "text" is missing'),
        ({"task": "asc/a", "inputs": [{"text": "a"}, {"text": 3}]}, "invalid_input", 'inputs[1]: field "text" must be'),
        (
            {"task": "asc/a", "input": {"text": "a", "aspekt": "b"}},
            "invalid_input",
            "no field 'aspekt' in classification",
        ),
        ({"task": "asc/a", "input": {"text": "\ud800"}}, "invalid_input", "half of a surrogate pair"),
        ({"task": "asc/a", "input": {"\ud800": "a"}}, "invalid_input", 'field "text" is missing'),
        ({"task": "asc/a", "\ud800": {"text": "a"}}, "invalid_request", "valid string"),
        ({"task": "a" * 100_000, "input": {"text": "a"}}, "unknown_task", "aaa... is not learned"),
        ({"task": "asc/a", "a" * 100_000: 3}, "invalid_request", "aaa..."),
        ({"task": "asc/a"}, "invalid_request", "either input or inputs"),
        ({"task": "asc/a", "input": {}, "inputs": [{}]}, "invalid_request", "either input or inputs"),
        ({"task": "asc/a", "inputs": []}, "invalid_request", "inputs: "),
        ({"task": 3, "input": {"text": "a"}}, "invalid_request", "task: "),
        ({"task": "asc/a", "input": "a"}, "invalid_request", "input: "),
        ({"task": "asc/a", "input": {"text": "a"}, "stream": "yes"}, "invalid_request", "stream: "),
        ({"task": "asc/a", "input": {"text": "a"}, "parameter": {}}, "invalid_request", "parameter: "),
        ({"task": "asc/a", "input": {"text": "a"}, "parameters": {"num_beams": 2}}, "invalid_parameters", "takes no"),
        ({"task": "drg/d", "input": {"source": "a"}, "parameters": {"num_beams": 99}}, "invalid_parameters", "of 8"),
        ({"task": "drg/d", "input": {"source": "a"}, "parameters": {"num_beams": 0}}, "invalid_request", "num_beams"),
        (
            {"task": "drg/d", "input": {"source": "a"}, "parameters": {"max_new_tokens": 999}},
            "invalid_parameters",
            "256",
        ),
        (
            {"task": "drg/d", "input": {"source": "a"}, "parameters": {"min_new_tokens": 9}},
            "invalid_parameters",
            "min_new_tokens=9 exceeds max_new_tokens=5",
        ),
        ({"task": "sum/beams", "input": {"source": "a"}, "stream": True}, "invalid_parameters", "2 beams"),
        ({"task": "asc/a", "input": {"text": "a"}, "stream": True}, "invalid_parameters", "is classification"),
        ({"task": "asc/a", "inputs": [{"text": "a"}], "stream": True}, "invalid_request", "one input"),
        ({"task": "asc/a", "input": {"text": "a " * 99}}, "input_too_long", "more than 30 tokens"),
        ({"task": "ner/c", "input": {"tokens": ["a" * 200] * 2}}, "input_too_long", "400 characters are over"),
        ({"task": "asc/a", "inputs": [{"text": "a"}] * 5}, "body_too_large", "5 inputs are over"),
        ([], "invalid_request", ""),
        (None, "invalid_request", ""),
    ],
)
def test_bad_requests_are_told_what_is_wrong(served, body, code, words):
    client = served(max_tokens=30, max_inputs=4)
    content = json.dumps(body)  # surrogates as escapes
    response = client.post("/v1/predict", content=content, headers={"content-type": "application/json"})
    assert words in refused(response, code)


@pytest.mark.parametrize(
    ("content", "type_", "code", "words"),
    [
        (b"{", "application/json", "invalid_json", "not JSON"),
        (b"[" * 50_000, "application/json", "invalid_json", "nested too deeply"),
        (b'{"task": NaN}', "application/json", "invalid_json", "NaN"),
        (b'{"task": "a", "task": "b"}', "application/json", "invalid_json", "'task' appears twice"),
        (b'{"n": ' + b"1" * 5000 + b"}", "application/json; charset=utf-8", "invalid_json", "thousands of digits"),
        (b'{"task": "\xff"}', "application/json", "invalid_json", "utf-8"),
        (b"{}", "text/plain", "not_json", "text/plain"),
        (b"{}", None, "not_json", "no content type"),
        (b"", "application/json", "invalid_request", "required"),
        (b" " * 300_000, "application/json", "body_too_large", "over 262144 bytes"),
    ],
)
def test_bodies_that_are_no_json_are_refused(client, content, type_, code, words):
    headers = {} if type_ is None else {"content-type": type_}
    assert words in refused(client.post("/v1/predict", content=content, headers=headers), code)


def test_a_body_is_limited_however_it_comes(client):
    def pieces():
        for _ in range(300):
            yield b" " * 1000

    response = client.post("/v1/predict", content=pieces(), headers={"content-type": "application/json"})
    refused(response, "body_too_large")


def test_other_paths_and_methods(client):
    refused(client.get("/v2"), "not_found")
    refused(client.get("/v1/predict"), "method_not_allowed")
    refused(client.get("/docs"), "not_found")  # would load scripts from elsewhere


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
task = st.sampled_from([*KINDS, "none", "", 3, None])
fields = st.sampled_from(["text", "aspect", "tokens", "source", "context", "label", "target", "x"])
inputs = st.dictionaries(fields, values | st.lists(st.text(max_size=5), max_size=4), max_size=4) | values
asked = st.fixed_dictionaries(
    {},
    optional={
        "task": task,
        "input": inputs,
        "inputs": st.lists(inputs, max_size=3),
        "parameters": st.dictionaries(st.sampled_from(["num_beams", "max_new_tokens", "x"]), values, max_size=2)
        | values,
        "stream": st.booleans() | values,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked | values)
def test_whatever_is_asked_is_answered_or_refused_by_type(learned, client, body):
    response = client.post("/v1/predict", content=json.dumps(body), headers={"content-type": "application/json"})
    if response.status_code == 200:
        assert body["task"] in KINDS
        return
    assert 400 <= response.status_code < 500
    error = response.json()["error"]
    assert CODES[error["code"]] == (response.status_code, error["remedy"])


def test_text_streams_and_ends_as_the_answer(client):
    whole = ask(client, "drg/d").json()["prediction"]
    response = ask(client, "drg/d", stream=True)
    assert response.headers["content-type"] == "application/x-ndjson"
    *pieces, last = map(json.loads, response.text.splitlines())
    assert len(pieces) > 1
    assert "".join(piece["text"] for piece in pieces) == whole
    assert last == {"done": True, "task": "drg/d", "prediction": whole}


def test_a_search_streams_if_one_beam_is_asked_for(client, learned):
    response = ask(client, "sum/beams", stream=True, parameters={"num_beams": 1})
    last = json.loads(response.text.splitlines()[-1])
    greedy = Generation(num_beams=1, max_new_tokens=5, causal=False)
    assert last["prediction"] == ask(client, "sum/beams", parameters={"num_beams": 1}).json()["prediction"]
    assert greedy == KINDS["drg/d"]


def test_a_stream_of_what_cannot_be_answered_has_a_status(served):
    response = ask(served(max_tokens=5), "drg/d", {"source": "a " * 15}, stream=True)
    refused(response, "input_too_long")


def test_a_fault_is_told_without_its_details(client, monkeypatch):
    def fail(questions):
        raise KeyError("secret")

    monkeypatch.setattr(client.service._batcher, "_run", fail)
    response = ask(client)
    assert "secret" not in response.text
    assert refused(response, "internal") == "KeyError while answering"
    assert response.headers["content-security-policy"]
    monkeypatch.undo()
    assert ask(client).status_code == 200


def test_the_model_is_called_on_one_thread(client, monkeypatch):
    threads, answer = set(), Learned.answer

    def seen(self, questions):
        threads.add(threading.current_thread().name)
        return answer(self, questions)

    monkeypatch.setattr(client.service._batcher, "_run", lambda questions: seen(client.service._learned, questions))
    with ThreadPoolExecutor(4) as pool:
        assert all(one.status_code == 200 for one in pool.map(lambda task: ask(client, task), list(INPUTS) * 4))
    assert threads == {"tss-model"}


def test_an_input_that_is_cut_says_so(client):
    assert "truncated" not in ask(client, given={"text": "good"}).json()
    assert ask(client, given={"text": "good " * 40}).json()["truncated"] is True


def test_the_description_is_valid_and_names_what_there_is(client, served):
    description = client.get("/openapi.json").json()
    validate(description)
    assert set(description["paths"]) == {
        "/v1/predict", "/v1/tasks", "/v1/reload", "/metrics", "/health", "/health/live", "/health/ready",
    }  # fmt: skip
    guarded = served(token=TOKEN).get("/openapi.json").json()
    validate(guarded)
    assert guarded["paths"]["/v1/predict"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in description["paths"]["/v1/predict"]["post"]


def test_tasks_are_described(client):
    tasks = {one.pop("task"): one for one in client.get("/v1/tasks").json()["tasks"]}
    assert list(tasks) == list(KINDS)
    assert tasks["asc/a"] == {
        "kind": "classification", "fields": ["text"], "optional_fields": ["aspect"], "labels": ["no", "yes"],
    }  # fmt: skip
    assert (tasks["ner/c"]["fields"], tasks["drg/d"]["fields"]) == (["tokens"], ["source"])
    assert tasks["sum/beams"]["parameters"]["num_beams"] == 2


def test_metrics_count_by_task_and_status(served):
    client = served()
    ask(client)
    ask(client, "ner/c")
    ask(client, given={"text": 3})
    ask(client, "none-such", {"text": "a"})
    lines = client.get("/metrics").text.splitlines()
    found = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}
    assert found['tss_requests_total{status="200",task="asc/a"}'] == 1
    assert found['tss_requests_total{status="200",task="ner/c"}'] == 1
    assert found['tss_requests_total{status="422",task="asc/a"}'] == 1
    assert found['tss_requests_total{status="404",task=""}'] == 1
    assert (found["tss_request_seconds_count"], found["tss_batch_inputs_count"]) == (4, 2)
    assert (found["tss_queue_inputs"], found["tss_tasks"]) == (0, len(KINDS))

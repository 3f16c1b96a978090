"""Hostile data, configurations and folders: each must be rejected soon, with one clear line and nothing written."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

from scripts.attack.interruptions import Failures, fresh
from scripts.attack.scene import Scene

SECONDS = 120
"""Maximum seconds that a refusal may take; on a busy machine, a process by itself takes some."""
GOOD = '{"text": "the phone is good", "label": "plus"}'

LINES: dict[str, bytes] = {
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "a number of 5,000 digits": b'{"text": "a", "label": ' + b"1" * 5000 + b"}",
    "not a number": b'{"text": "a", "label": NaN}',
    "infinity in another field": b'{"text": "a", "label": "plus", "x": Infinity}',
    "half a line": b'{"text": "hal',
    "a list": b'["text", "label"]',
    "a number": b"3",
    "null": b"null",
    "a text": b'"text"',
    "an empty line": b"",
    "blanks": b"   \t ",
    "a null byte": b"\0",
    "no UTF-8": b'{"text": "\xff\xfe", "label": "plus"}',
    "UTF-16": '{"text": "a", "label": "plus"}'.encode("utf-16"),
    "half a surrogate pair": rb'{"text": "\ud800", "label": "plus"}',
    "half a surrogate pair as the label": rb'{"text": "a", "label": "\udfff"}',
    "no label": b'{"text": "a"}',
    "no text": b'{"label": "plus"}',
    "a number as the text": b'{"text": 3, "label": "plus"}',
    "a list as the text": b'{"text": ["a"], "label": "plus"}',
    "null as the text": b'{"text": null, "label": "plus"}',
    "a number as the label": b'{"text": "a", "label": 1}',
    "an object as the label": b'{"text": "a", "label": {}}',
    "an empty text": b'{"text": "", "label": "plus"}',
    "a blank text": '{"text": "\u2003\u2028", "label": "plus"}'.encode(),
    "an empty label": b'{"text": "a", "label": ""}',
    "a number as the aspect": b'{"text": "a", "label": "plus", "aspect": 3}',
    "an empty aspect": b'{"text": "a", "label": "plus", "aspect": ""}',
    "fields of another kind": b'{"text": "a", "label": "plus", "tokens": ["a"]}',
    "a line of 17 MB": b'{"text": "' + b"a" * 17_000_000 + b'", "label": "plus"}',
    "JavaScript": b"{text: 'a', label: 'plus'}",
    "a key twice": b'{"text": "a", "label": "plus", "text": "b"}',
    "a key twice inside another field": b'{"text": "a", "label": "plus", "x": [{"y": 1, "y": 1}]}',
    "two objects": b'{"text": "a", "label": "plus"} {"text": "b", "label": "plus"}',
    "a comma at the end": b'{"text": "a", "label": "plus",}',
    "HTML": b"<html></html>",
    "a control character": b'{"text": "a\x01", "label": "plus"}',
}

KEYS = [
    *(
        "adapters.bottleneck=100000000000",
        "adapters.bottleneck=1e11",
        "adapters.bottleneck=0",
        "adapters.bottleneck=-4",
    ),
    *(
        "adapters.bottleneck=60000.5",
        "adapters.sites=nothing_like_this",
        "adapters.sites='('",
        r"adapters.sites='(.|\w)*\W'",
        "adapters.threshold=.nan",
    ),
    *("adapters.preset=elephant", "adapters.gated=false", "adapters.seed=x", "adapters=3", "adapters=[1]"),
    *("training.epochs=1000000000000", "training.epochs=0", "training.batch_size=1e30", "training.batch_size=-1"),
    *("training.score_lr=1e39", "training.score_lr=.inf", "training.score_lr=-1", "training.score_lr=.nan"),
    *("training.source_length=1000000", "training.source_length=1", "training.warmup_ratio=7", "training=3"),
    *("training.metric=rouge1", "training.features=nowhere", "generation.num_beams=100000", "generation.num_beams=0"),
    *("limits.train=0", "limits.train=-5", "seed=-1", "seed=99999999999999999999999", f"seed={'9' * 5000}"),
    *("probe_size=100000000000", "device=toaster", "device=cuda:99", "precision=float61", "method=elephant"),
    *("method=[1]", "method_options=3", "method_options.soft_mask=off", "method_options.soft_mask=maybe"),
    *("soft_mask=off", "bottlenek=3", "tasks=asc/phones", "tasks=[asc/phone]", "tasks=[asc/phones, asc/phones]"),
    *(
        "tasks=[../../etc]",
        "tasks=[[asc/phones]]",
        "tasks={a: b}",
        "families={asc: 3}",
        "overrides={asc/phones: {x: 1}}",
    ),
    *("fields={text: body}", "tokenizer=/nowhere", "label=2021-13-45", "label={", f"label={'[' * 3000}", "=3"),
    *("training.=3", "1=2", "checkpoint_steps=0", "log_seconds=-1", "reevaluate=never"),
    *("missing_tasks=perhaps", "zero_shot=perhaps", "method_options.score_copy=3", "label=*nobody"),
]

FILES: dict[str, bytes] = {
    "aliases that explode": b"a: &a [1,1,1,1,1,1,1,1,1]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c + 1, c + 1, b",".join([b"*%c" % c] * 9)) for c in range(97, 107)),
    "an alias of itself": b"label: &a [*a]\n",
    "nested lists": b"label: " + b"[" * 2000,
    "UTF-16": "seed: 3\n".encode("utf-16"),
    "a list": b"- seed\n",
    "a text": b"seed\n",
    "a key twice": b"seed: 1\nseed: 2\n",
    "a key that is a number": b"1: 2\n",
    "a key that is a list": b"[1, 2]: 3\n",
    "a Python object": b"label: !!python/object/apply:os.getcwd []\n",
    "a date that is none": b"label: 2021-99-99\n",
    "two megabytes": b"label: " + b"a" * 2_000_000,
    "half a mapping": b"training: {epochs: 3",
    "extends itself": b"extends: mine\n",
    "extends a list": b"extends: [demo]\n",
    "a null byte": b"label: \0\n",
}


def manifests() -> dict[str, Callable[[dict[str, Any]], Any]]:
    """Return functions that make crafted manifests of a saved folder from the correct one."""
    return {
        "a list": lambda m: [m],
        "a number for tasks": lambda m: {**m, "tasks": 3},
        "texts for tasks": lambda m: {**m, "tasks": ["x"]},
        "null for frozen": lambda m: {**m, "frozen": None},
        "a list for config": lambda m: {**m, "config": [1]},
        "an unknown setting": lambda m: {**m, "config": {**m["config"], "x": 1}},
        "a wrong setting": lambda m: {**m, "config": {**m["config"], "bottleneck": "x"}},
        "an unknown option": lambda m: {**m, "options": {"x": 1}},
        "a file outside": lambda m: {**m, "shared": {**m["shared"], "file": "../outside.safetensors"}},
        "an absolute file": lambda m: {**m, "frozen": {**m["frozen"], "file": "/etc/passwd"}},
        "a folder as a file": lambda m: {**m, "frozen": {**m["frozen"], "file": "tasks"}},
        "another checksum": lambda m: {**m, "frozen": {**m["frozen"], "sha256": "0" * 64}},
        "a number as a checksum": lambda m: {**m, "frozen": {**m["frozen"], "sha256": 0}},
        "another format": lambda m: {**m, "format": 1},
        "a task as shared": lambda m: {**m, "shared": m["tasks"][0]},
        "shared as a task": lambda m: {**m, "tasks": [m["shared"]]},
        "frozen as a task": lambda m: {**m, "tasks": [m["frozen"]]},
        "a task twice": lambda m: {**m, "tasks": m["tasks"] * 2},
        "no task": lambda m: {**m, "tasks": []},
        "a missing key": lambda m: {key: value for key, value in m.items() if key != "shared"},
    }


def hostile_inputs(scene: Scene, every: int = 1) -> tuple[int, Failures]:
    """Try all hostile inputs, or one in `every`; return (number tried, failures)."""
    failures, count = [], 0
    for number, (what, words) in enumerate(_cases(scene)):
        if number % every:
            continue
        count += 1
        started = time.monotonic()
        done = scene.tss(*words)
        seconds = time.monotonic() - started
        if not done.clear or len(done.err.strip().splitlines()) != 1 or seconds > SECONDS:
            failures.append(f"{what}: {seconds:.0f} s, {done.code}: {(done.err or done.out)[-600:]!r}")
        if (scene.folder / "hostile" / "run").exists():
            failures.append(f"{what}: a run was started")
            shutil.rmtree(scene.folder / "hostile" / "run")
    return count, failures


def _cases(scene: Scene) -> Iterator[tuple[str, list[object]]]:
    place = fresh(scene, "hostile")
    place.mkdir()
    out = ["--out", place / "run", "--quiet"]
    for key in KEYS:
        yield f"configuration {key[:60]}", ["run", *scene.options(), *out, key]
    for what, data in FILES.items():
        path = place / "mine.yaml"
        path.write_bytes(data)
        yield f"configuration file: {what}", ["run", path, *scene.options(), *out]
    for what, line in LINES.items():
        root = place / "data"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(scene.data, root)
        path = root / "asc" / "phones" / "train.jsonl"
        lines = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]))
        yield f"training data: {what}", ["run", *scene.options(), "--data", root, *out]
        ask = place / "ask.jsonl"
        ask.write_bytes(GOOD.encode() + b"\n" + line + b"\n")
        if what in ANSWERS_IGNORED:
            continue
        yield (
            f"lines to predict: {what}",
            ["predict", scene.folder / "reference", "--task", "asc/phones", "--input", ask],
        )
    for what, change in manifests().items():
        folder = place / "crafted"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(scene.folder / "reference", folder)
        shutil.rmtree(folder / "state")
        manifest = json.loads((folder / "tss.json").read_text())
        shutil.copy(folder / manifest["shared"]["file"], place / "outside.safetensors")
        (folder / "tss.json").write_text(json.dumps(change(manifest)))
        ask = place / "good.jsonl"
        ask.write_text(GOOD + "\n")
        words: list[object] = ["predict", folder, "--backbone", scene.backbone, "--task", "asc/phones", "--input", ask]
        yield f"crafted folder: {what}", words


ANSWERS_IGNORED = {
    *("no label", "a number as the label", "an object as the label", "an empty label"),
}
"""Lines with only a wrong answer, which prediction ignores."""

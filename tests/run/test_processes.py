"""One run in two processes, as torchrun starts them, against the same run in one."""

from __future__ import annotations

import json
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.programs import Program
from tss.errors import ConfigError
from tss.run.config import load_config
from tss.run.processes import Processes
from tss.run.sequence import run_sequence

from .conftest import tiny_values

RUN = """
import json, os, sys, torch
torch.set_num_threads(1)
from tss.run.config import load_config
from tss.run.sequence import run_sequence
values, folder, resume = json.loads(sys.argv[1])
run_sequence(load_config(values), folder, resume=resume)
if not values.get("shard_backbone"):  # caches of DTensor, which are PyTorch's, keep the group
    threads = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
    assert "pt_gloo_runloop" not in threads, "something keeps the process group, which may hang when it is freed"
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(values, folder, *, count, resume=False):
    """The exit codes of `count` processes of one run."""
    port = free_port()
    arguments = [sys.executable, "-c", RUN, json.dumps([values, str(folder), resume])]
    place = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    programs = [
        Program(*arguments, environment={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)
    ]
    try:
        ended = [program.finish() for program in programs]
    finally:
        for program in programs:
            program.stop()
    return [(one.returncode, one.stderr) for one in ended]


def finished(values, folder, **settings):
    for code, error in start(values, folder, count=2, **settings):
        assert code == 0, error
    return results(folder)


def results(folder):
    """The matrix, the scores that are handed on, and the answers."""
    (shared,) = folder.glob("adapters/shared-*.safetensors")
    answers = {path.name: path.read_text() for path in sorted((folder / "predictions").iterdir())}
    return json.loads((folder / "matrix.json").read_text())["matrix"], load_file(shared), answers


def close(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor, other[name], rtol=1e-3, atol=1e-5), name


@pytest.fixture(scope="module")
def values(plain_backbone, tiny_data):
    return tiny_values(plain_backbone, tiny_data)


@pytest.fixture(scope="module")
def alone(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_sequence(load_config(values), folder)
    return results(folder)


def test_two_processes_learn_what_one_learns(values, alone, tmp_path):
    matrix, shared, answers = finished(values, tmp_path / "run")
    close(shared, alone[1])
    assert any(name.startswith("shared.importance.") for name in shared)
    assert list(answers) == list(alone[2])
    assert [len(text.splitlines()) for text in answers.values()] == [len(x.splitlines()) for x in alone[2].values()]
    for row, expected in zip(matrix, alone[0], strict=True):
        assert row == pytest.approx(expected, abs=20)  # an answer of six may change with the last bits
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "run_begin" for event in events) == 1
    assert json.loads((tmp_path / "run" / "env.json").read_text())["processes"] == 2


def test_a_sharded_backbone_learns_the_same(values, alone, tmp_path):
    _, shared, _ = finished({**values, "shard_backbone": True}, tmp_path / "run")
    close(shared, alone[1])


def test_a_method_with_a_state_and_a_penalty(values, tmp_path):
    values = {**values, "method": "ewc"}
    run_sequence(load_config(values), tmp_path / "one")
    _, shared, _ = finished(values, tmp_path / "two")
    close(shared, results(tmp_path / "one")[1])


def test_gradients_are_weighted_by_labels_that_the_processes_have_unequally_many_of(plain_backbone, tmp_path):
    """Equally long sources, so that batches mix short and long targets, and no other process has as many labels."""
    target, folder = "Bob likes the battery and the screen and the camera", tmp_path / "data" / "drg" / "uneven"
    folder.mkdir(parents=True)
    for split, count in (("train", 6), ("validation", 2), ("test", 2)):
        words = [("sells", "visits", "likes")[i % 3] for i in range(count)]
        rows = [{"source": f"Alice {w} Paris", "target": w if i % 2 else target} for i, w in enumerate(words)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = tiny_values(plain_backbone, tmp_path / "data") | {"method": "ncl", "tasks": ["drg/uneven"]}
    values["training"] = values["training"] | {"batch_size": 2, "epochs": 1, "warmup_ratio": 0.0, "adapter_lr": 1e-2}
    run_sequence(load_config(values), tmp_path / "one")
    _, shared, _ = finished(values, tmp_path / "two")
    close(shared, results(tmp_path / "one")[1])


def test_a_run_of_one_process_goes_on_in_two(values, alone, tmp_path):
    folder = tmp_path / "run"

    def stop(event):
        if event["event"] == "task_end":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sequence(load_config(values), folder, progress=stop)
    _, shared, _ = finished(values, folder, resume=True)
    close(shared, alone[1])
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    (told,) = [event for event in events if event["event"] == "environment"]
    assert "processes" in told["changed"]


def test_accelerate_launch_starts_the_processes(values, tmp_path):
    values = {**values, "tasks": values["tasks"][:1], "limits": {"train": 4, "validation": 2, "test": 2}}
    (tmp_path / "run.py").write_text(RUN)
    words = ["--multi_gpu", "--num_processes", 2, "--main_process_port", free_port(), tmp_path / "run.py"]
    arguments = json.dumps([values, str(tmp_path / "run"), False])
    program = Program(
        sys.executable, "-m", "accelerate.commands.launch", *words, arguments,
        environment={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    try:
        ended = program.finish()
    finally:
        program.stop()
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "run" / "env.json").read_text())["processes"] == 2


def test_accelerate_that_started_one_process_instead_of_several_is_an_error(values, tmp_path, monkeypatch):
    """As `accelerate launch --num_processes 2` does on CPUs."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="give it --multi_gpu, also on CPUs"):
        run_sequence(load_config(values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rows_and_shares_of_a_batch():
    parts = [Processes(rank, 3) for rank in range(3)]
    assert [list(part.rows([5, 6, 7, 8])) for part in parts] == [[5, 8], [6], [7]]
    assert [part.share([1, 1, 1, 1]) for part in parts] == [0.5, 0.25, 0.25]
    assert [list(part.rows([5])) for part in parts] == [[5], [5], [5]]
    assert [part.share([4]) for part in parts] == [1.0, 0.0, 0.0]
    assert [part.share([0, 0]) for part in parts] == [0.0, 0.0, 0.0]
    assert sorted(batch for part in parts for batch in part.batches(range(7))) == list(range(7))

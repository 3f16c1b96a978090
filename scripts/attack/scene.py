"""Environment of the attacks: a tiny backbone, tiny tasks, and `tss` in processes with injected faults."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

STORY = "operations on files:\n"
"""Precedes the list of operations in the output of a command line that was armed with NOTHING."""
HERE = Path(__file__).parent
NOTHING, KILL, FULL, STOP = range(4)
"""Fault at the chosen operation on a file; the same values as in faults.c."""


@dataclass(frozen=True)
class Ended:
    """Result of a command line; a negative code is the signal that ended it."""

    code: int
    out: str
    err: str

    @property
    def clear(self) -> bool:
        """Whether it failed with a proper message: lines of `tss` only, no traceback, no unexpected error."""
        lines = [line for line in self.err.splitlines() if line.strip()]
        return self.code not in (0, 70, 99) and bool(lines) and all(line.startswith("tss") for line in lines)


class Scene:
    """Files and processes of an attack.

    Args:
        folder: folder for all files; deleted and created again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.backbone, self.data = self.folder / "backbone", self.folder / "data"
        self.library = self.folder / "faults.so"
        compile_ = ["cc", "-O1", "-shared", "-fPIC", str(HERE / "faults.c"), "-o", str(self.library), "-ldl"]
        subprocess.run(compile_, check=True)
        self._count = 0
        self.story: list[str] = []
        """Operations on files in an undisturbed run, each with its file; empty until there was one."""
        make_data(self.data)

    def __enter__(self) -> Scene:
        environment = {**os.environ, "LD_PRELOAD": str(self.library), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        self._server = subprocess.Popen(
            [sys.executable, "-m", "scripts.attack.server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, cwd=self.folder,
        )  # fmt: skip
        self._order(do="backbone", folder=str(self.backbone))
        words = ["run", *self.options(), "--out", str(self.folder / "warm"), "--quiet"]
        if self._order(do="warm", words=words)["code"] != 0:
            raise RuntimeError("an undisturbed run failed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def _order(self, **order: object) -> dict[str, int]:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())

    def start(self, *words: object, arm: tuple[Path, int, int] | None = None, report: bool = False) -> tuple[int, Path]:
        """Start `tss` with these words; return its process id and the path prefix of its output files.

        Args:
            words: words of the command line.
            arm: a folder, the fault to inject, and the number of the operation on its files.
            report: build reports, with tables but without figures, which take longer to draw than such a run.
        """
        self._count += 1
        output = self.folder / "output" / f"{self._count:05d}"
        output.parent.mkdir(exist_ok=True)
        for name in ("out", "err"):
            Path(f"{output}.{name}").touch()
        armed = None if arm is None else [str(arm[0]), arm[1], arm[2]]
        answer = self._order(
            do="start", words=[str(word) for word in words], out=f"{output}.out", err=f"{output}.err", arm=armed,
            report=report,
        )  # fmt: skip
        return answer["pid"], output

    def wait(self, started: tuple[int, Path]) -> Ended:
        """Wait for a process that `start` returned."""
        pid, output = started
        code = self._order(do="wait", pid=pid)["code"]
        texts = [Path(f"{output}.{name}").read_text(errors="replace") for name in ("out", "err")]
        return Ended(code, texts[0], texts[1])

    def tss(self, *words: object, arm: tuple[Path, int, int] | None = None, report: bool = False) -> Ended:
        """Run `tss` with these words until it ends."""
        return self.wait(self.start(*words, arm=arm, report=report))

    def options(self) -> list[str]:
        """Return the words for a run of a few seconds, with a checkpoint after every second step."""
        return ["checkpoint_steps=2", "log_seconds=0", *tiny_options(self.backbone, self.data)]

    def go_on(self, folder: Path, arm: tuple[Path, int, int] | None = None, report: bool = False) -> Ended:
        """Start a run in a folder, or resume an existing one."""
        words = ["run", *self.options(), "--out", folder, "--quiet"]
        return self.tss(*words, *(["--resume"] if folder.is_dir() else []), arm=arm, report=report)


def tiny_options(backbone: Path, data: Path) -> list[str]:
    """Return the words for the smallest run: with the data of `make_data`, two tasks of three steps."""
    keys = ["adapters.bottleneck=4", "training.epochs=1", "training.batch_size=4", "training.source_length=16"]
    keys += ["training.target_length=8", "precision=float32", "device=cpu"]
    return [*keys, "--backbone", str(backbone), "--data", str(data)]


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files that interruptions must not change: results, tasks, shared state, configuration."""
    patterns = ("matrix.json", "config.yaml", "tss.json", "tasks/*", "adapters/*", "predictions/*")
    paths = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def make_data(folder: Path) -> None:
    """Write a classification and an extraction task with twelve training examples each."""
    for split, count in (("train", 12), ("validation", 4), ("test", 4)):
        things = ["battery", "screen", "phone", "camera"]
        reviews = [
            {"text": f"the {things[i % 4]} is {'good' if i % 2 else 'bad'}", "label": "plus" if i % 2 else "minus"}
            for i in range(count)
        ]
        people = [
            {"tokens": [("Alice", "Bob")[i % 2], "visits", "Paris"], "ner_tags": ["B-PER", "O", "B-LOC"]}
            for i in range(count)
        ]
        for task, rows in (("asc/phones", reviews), ("ner/people", people)):
            path = folder / task / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))

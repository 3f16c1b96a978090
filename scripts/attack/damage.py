"""Damaged files: every command that reads them must report the damage, or give the same output as without it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from scripts.attack.interruptions import Failures, fresh
from scripts.attack.scene import KILL, Scene, contents

Change = Callable[[bytes, random.Random], bytes | None]


def _flip(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data)) if data else 0
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :] if data else b"x"


def _digit(data: bytes, rng: random.Random) -> bytes:
    """Change one digit, which keeps a text parseable."""
    places = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return _flip(data, rng)
    place = rng.choice(places)
    return data[:place] + bytes([48 + (data[place] - 47) % 10]) + data[place + 1 :]


CHANGES: dict[str, Change] = {
    "one bit": _flip,
    "another digit": _digit,
    "cut": lambda data, rng: data[: rng.randrange(len(data))] if data else None,
    "empty": lambda data, rng: b"",
    "gone": lambda data, rng: None,
    "zeros": lambda data, rng: bytes(len(data)),
    "noise": lambda data, rng: rng.randbytes(len(data)),
    "longer": lambda data, rng: data + b'{"event": "evaluated"}\n',
    "null": lambda data, rng: b"null\n",
    "nested": lambda data, rng: b"[" * 100_000,
}
IGNORED = ("report.html", "plots", "tables", "lock")
"""Files and folders that a run writes and never reads."""


def damage_files(scene: Scene, most: int, seed: int) -> tuple[int, int, Failures]:
    """Damage files of a finished run and of one killed within a task; return (damages, reported damages, failures).

    Prediction, the report and a resume then read the run. Each must end with a clear error message, or give the same
    output as for the undamaged run.
    """
    whole, half = scene.folder / "reference", fresh(scene, "half")
    place = _inside_second_task(scene, half)
    rng, cases = random.Random(seed), []
    for source in (whole, half):
        files = [path for path in sorted(source.rglob("*")) if path.is_file()]
        names = [path.relative_to(source) for path in files if not set(path.relative_to(source).parts) & set(IGNORED)]
        cases += [(source, name, change) for name in names for change in CHANGES]
    rng.shuffle(cases)
    victim = scene.folder / "victim"
    answers = {source: _answers(scene, _copy(source, victim)) for source in (whole, half)}
    expected, named, failures = contents(whole), 0, []
    for source, name, change in cases[:most]:
        _copy(source, victim)
        data = CHANGES[change]((victim / name).read_bytes(), rng)
        if data is None:
            (victim / name).unlink()
        else:
            (victim / name).write_bytes(data)
        what = f"{change}: {name} of a {'finished' if source == whole else f'run killed at operation {place}'}"
        told = False
        for command, found in _answers(scene, victim).items():
            if found[0] == answers[source][command][0] == 0 and found[1] != answers[source][command][1]:
                failures.append(f"{what}: believed by {command}")
            told |= found[0] != 0
            if found[0] != 0 and not found[2]:
                failures.append(f"{what}: {command} is unclear: {found[3]}")
        done = scene.go_on(victim, report=True)
        told |= done.code != 0
        if done.code == 0 and contents(victim) != expected:
            failures.append(f"{what}: believed by a resume")
        if done.code != 0 and not done.clear:
            failures.append(f"{what}: a resume is unclear: {done}")
        named += told
    return min(most, len(cases)), named, failures


def _answers(scene: Scene, folder: Path) -> dict[str, tuple[int, bytes, bool, str]]:
    """Return (exit code, output, whether a failure is clear, standard error) of each command that reads a run."""
    lines = scene.folder / "ask.jsonl"
    lines.write_text('{"text": "the phone is good"}\n{"text": "the camera is bad"}\n')
    predicted = scene.tss("predict", folder, "--task", "asc/phones", "--input", lines)
    out = scene.folder / "reported"
    shutil.rmtree(out, ignore_errors=True)
    reported = scene.tss("report", folder, "--out", out, report=True)
    tables = b"".join(path.read_bytes() for path in sorted(out.glob("tables/*.csv")))
    return {
        "predict": (predicted.code, predicted.out.encode(), predicted.clear, predicted.err),
        "report": (reported.code, tables, reported.clear, reported.err),
    }


def _copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def _inside_second_task(scene: Scene, folder: Path) -> int:
    """Kill a run when the first task is stored and the second has a checkpoint; return the number of the operation."""
    saved = folder / "state" / "learning.safetensors"
    renamed = f"rename /{saved.relative_to(folder).as_posix()}"
    place = max(number for number, line in enumerate(scene.story, start=1) if line == renamed) + 1
    shutil.rmtree(folder, ignore_errors=True)
    scene.go_on(folder, (folder, KILL, place))
    if not saved.is_file() or len(list(folder.glob("tasks/*.safetensors"))) != 1:
        raise RuntimeError(f"operation {place} is not inside the second task")
    return place

"""Kills, full disks and two starts at once: finished work must be kept, and the run must end as if undisturbed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from scripts.attack.scene import FULL, KILL, NOTHING, STOP, STORY, Scene, contents

Failures = list[str]
PAGE = 4096
"""Bytes of a page, the unit of size of an in-memory file system."""


def reference(scene: Scene) -> tuple[dict[str, bytes], int, float]:
    """Do an undisturbed run; return its contents, its number of operations on files, and its seconds."""
    folder, started = scene.folder / "reference", time.monotonic()
    done = scene.go_on(folder, (folder, NOTHING, 0))
    if done.code != 0:
        raise RuntimeError(f"the undisturbed run failed: {done}")
    scene.story = done.out.partition(STORY)[2].splitlines()
    return contents(folder), len(scene.story), time.monotonic() - started


def one_of_each_kind(story: Sequence[str]) -> dict[str, int]:
    """Return, for each type of operation on files (open, write, rename and so on), the number of a middle one."""
    kinds: dict[str, list[int]] = {}
    for number, line in enumerate(story, start=1):
        kinds.setdefault(line.split()[0], []).append(number)
    return {kind: numbers[len(numbers) // 2] for kind, numbers in kinds.items()}


def kill_at_operations(scene: Scene, expected: dict[str, bytes], places: Iterable[int]) -> tuple[int, Failures]:
    """Kill a run at each of these operations on files, a write after half of its bytes; then resume it to its end."""
    count, failures = 0, []
    for place in places:
        folder = fresh(scene, "killed")
        done = scene.go_on(folder, (folder, KILL, place))
        count += done.code == -signal.SIGKILL
        failures += ends_well(scene, folder, expected, f"killed at operation {place}")
    return count, failures


def kill_at_random(
    scene: Scene, expected: dict[str, bytes], kills: int, seconds: float, seed: int
) -> tuple[int, Failures]:
    """Kill runs after random times, each several times before it may end."""
    rng, count, failures = random.Random(seed), 0, []
    while count < kills:
        folder = fresh(scene, "killed")
        for _ in range(4):
            words = ["run", *scene.options(), "--out", folder, "--quiet", *(["--resume"] if folder.is_dir() else [])]
            started = scene.start(*words)
            time.sleep(rng.uniform(0, seconds))
            os.kill(started[0], signal.SIGKILL)
            killed = scene.wait(started).code == -signal.SIGKILL
            count += killed
            seconds *= 1 if killed else 0.9  # it ended before the kill: the machine is faster than before
        failures += ends_well(scene, folder, expected, f"after {count} random kills")
    return count, failures


def fill_disks(scene: Scene, expected: dict[str, bytes], places: Iterable[int]) -> tuple[int, Failures]:
    """Make the disk full from each of these operations on; the run must report it clearly, and then resume."""
    count, failures = 0, []
    for place in places:
        folder = fresh(scene, "full")
        done = scene.go_on(folder, (folder, FULL, place))
        if done.code == 0:
            continue  # nothing was left to write
        count += 1
        if not done.clear or "No space left" not in done.err:
            failures.append(f"full at operation {place}: {done}")
        failures += ends_well(scene, folder, expected, f"full at operation {place}")
    return count, failures


class Unmountable(RuntimeError):
    """Raised when no file system can be mounted; the message says why."""


def fill_real_disks(scene: Scene, expected: dict[str, bytes], most: int) -> tuple[int, Failures]:
    """Do the same on in-memory file systems, of `most` sizes below what a run needs, enlarged for the resume.

    Raises:
        Unmountable: this user may not mount a file system.
    """
    count, failures, disk = 0, [], scene.folder / "disk"
    disk.mkdir(exist_ok=True)
    files = [path for path in (scene.folder / "reference").rglob("*") if path.is_file()]
    pages = sum(1 + path.stat().st_size // PAGE for path in files)
    for number in range(most):
        size = PAGE * max(1, pages * (number + 1) // (most + 1))
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(disk)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if mounted.returncode != 0:
            raise Unmountable(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
        try:
            done = scene.go_on(disk / "run")
            count += done.code != 0
            if done.code != 0 and (not done.clear or "No space left" not in done.err):
                failures.append(f"a disk of {size} bytes: {done}")
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            failures += ends_well(scene, disk / "run", expected, f"a disk of {size} bytes")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    return count, failures


def two_starts(scene: Scene, expected: dict[str, bytes], places: Iterable[int]) -> tuple[int, Failures]:
    """Stop one start at an operation, start a second, then continue the first; exactly one must complete the run."""
    count, failures = 0, []
    for place in places:
        folder, words = fresh(scene, "twice"), ["run", *scene.options(), "--quiet"]
        first = scene.start(*words, "--out", folder, arm=(folder, STOP, place))
        wait_until_stopped(first[0])
        second = scene.tss(*words, "--out", folder, *(["--resume"] if (folder / "state/run.json").is_file() else []))
        os.kill(first[0], signal.SIGCONT)
        ended = scene.wait(first)
        count += 1
        if sorted([ended.code == 0, second.code == 0]) != [False, True]:
            failures.append(f"two starts, the first stopped at operation {place}: {ended} and {second}")
        if not all(each.clear for each in (ended, second) if each.code != 0):
            failures.append(f"two starts, the first stopped at operation {place}: unclear: {ended} and {second}")
        if contents(folder) != expected:
            failures.append(f"two starts, the first stopped at operation {place}: the run is another one")
    return count, failures


def wait_until_stopped(process: int) -> None:
    """Wait until a process is stopped by a signal, or has ended."""
    while True:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state in "TZ":
            return
        time.sleep(0.01)


def ends_well(scene: Scene, folder: Path, expected: dict[str, bytes], what: str) -> Failures:
    """Resume a run to its end; it must have the contents of the undisturbed run, and no partial files."""
    done = scene.go_on(folder)
    if done.code != 0:
        return [f"{what}: cannot continue: {done}"]
    failures = [f"{what}: ends with another result"] if contents(folder) != expected else []
    left = [path.name for path in folder.rglob("*.partial")]
    return failures + ([f"{what}: leaves {left}"] if left else [])


def fresh(scene: Scene, name: str) -> Path:
    """Return the path of a folder that does not exist, removing an existing one."""
    folder = scene.folder / name
    shutil.rmtree(folder, ignore_errors=True)
    return folder

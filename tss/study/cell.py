"""Run one cell of a study in its own process: `python -m tss.study.cell` reads what to run from standard input.

The process does not outlive the one that started it: when its standard input is closed, explicitly or because that
process ended, it stops as with Ctrl-C. Its progress is kept, and the next start of the cell resumes there.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tss.errors import TssError
from tss.io import locked, make_directory
from tss.study.folder import StudyFolder
from tss.study.plan import Cell

FAILED, UNEXPECTED, INTERRUPTED = 1, 70, 130
STOPPED = "stopped"
Tell = Callable[[dict[str, Any]], None]


def run_cell(
    root: str,
    cell: Cell,
    threads: int,
    directory: str,
    tell: Tell | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> str | None:
    """Start or resume a cell in a new process, and wait for the process to end.

    Args:
        root: folder of the study.
        cell: one of its cells.
        threads: number of threads of the process.
        directory: working directory of the process, to which relative paths in its configuration refer.
        tell: called with the progress messages of the process.
        started: called with the process; closing its standard input stops it.

    Returns:
        None if the cell is finished, otherwise the reason why not: an error, or `STOPPED`.
    """
    folder = StudyFolder(Path(directory, root))
    make_directory(folder.log(cell).parent)
    request = {"root": str(folder.path), "cell": cell.plain(), "threads": threads}
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    found = None
    with folder.log(cell).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tss.study.cell", str(folder.run(cell))],  # identifies the process in process lists
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=directory, env=environment,
            start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if started is not None:
            started(process)
        with contextlib.suppress(BrokenPipeError, ValueError):  # the process may have ended, or been stopped, already
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        for line in process.stdout:
            told = json.loads(line)
            found = told.get("error", found)
            if tell is not None and "error" not in told:
                tell(told)
    finally:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        code = process.wait()
        process.stdout.close()
    if code in (0, INTERRUPTED):
        return STOPPED if code else None
    if found is None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = ", as when the system is out of memory" if code == -signal.SIGKILL else ""
        found = f"its process {how}{hint}; {folder.log(cell)} has its output"
    return found


def main() -> int:
    """Run the process; write progress and any error to standard output, one JSON object per line."""
    request = json.loads(sys.stdin.buffer.readline() or b"null")
    if request is None:
        return INTERRUPTED
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keep output of libraries separate from the messages
    # a shell starts background commands with SIGINT ignored, which their child processes inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    try:
        _run(request)
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except TssError as error:
        _tell({"error": str(error)})
        return FAILED
    except Exception as error:
        traceback.print_exc()
        _tell({"error": f"{type(error).__name__}: {error} (unexpected)"})
        return UNEXPECTED


def _run(request: dict[str, Any]) -> None:
    import torch

    from tss.run.progress import TimeLeft
    from tss.run.sequence import run_sequence
    from tss.study.plan import cell_from

    torch.set_num_threads(request["threads"])
    folder, cell, left = StudyFolder(request["root"]), cell_from(request["cell"]), TimeLeft()
    last = 0.0

    def listen(event: dict[str, Any]) -> None:
        nonlocal last
        left.see(event)
        if event["event"] in ("step", "evaluated") and event["time"] - last >= 1:
            last = event["time"]
            _tell({"done": left.share(), "left": left.seconds()})

    path = folder.run(cell)
    make_directory(path.parent)
    # a previous process of this cell, whose parent was killed, may still be stopping
    with locked(path.parent / f"{cell.name}.lock", wait=True):
        if not folder.finished(cell):
            run_sequence(cell.config, path, resume=path.is_dir(), progress=listen)


def _tell(message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more; the end of standard input stops this process
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


def _stop_at_end_of_input() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())

"""A save that is killed or runs out of disk, at whichever file operation, leaves the old save or the new one, whole."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

import tss
from tss.adapters import saving

from .conftest import NAMES, TOPICS, learn, make_bart

SPAWN = multiprocessing.get_context("spawn")  # threads of this process do not survive a fork
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.scandir", "fcntl.flock"}
NEEDS_ROOM = {"os.mkdir", "os.rename", "fsync"}  # and opening a file to write


def run(target, *args):
    """Call a function in a process of its own, which has to end well."""
    process = SPAWN.Process(target=target, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0


def interrupt(folder, number, how):
    """From now on the operation of this number on files of the folder, and with "full" all later ones, goes wrong."""
    count, sync = [0], os.fsync

    def before(event, writes):
        count[0] += 1
        if how == "killed" and count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full" and count[0] >= number and writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def audit(event, args):
        if event in OPERATIONS and (event == "fcntl.flock" or str(args[0]).startswith(folder)):
            before(event, event in NEEDS_ROOM or (event == "open" and bool(args[1]) and set(args[1]) & set("wxa")))

    def fsync(descriptor):
        before("fsync", True)
        sync(descriptor)

    sys.addaudithook(audit)
    os.fsync = fsync


def limit(size, how):
    """No file may become larger: a process that tries is killed in the middle of writing, or its write fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if how == "killed" else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def save_in_a_fork(handle, folder, prepare, *args):
    """How a save ends in a copy of this process that `prepare` has done something to."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            prepare(*args)
            handle.save(folder)
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def held(folder):
    """Names and hashes of the tasks that a folder holds; None if it holds no save."""
    if not (folder / saving.MANIFEST).exists():
        return None
    return [(about["name"], about["hash"]) for _, about in saving.read(folder).tasks]


def try_every_interruption(root, how, overwrite):
    torch.set_num_threads(1)
    root = Path(root)
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    handle.add_task("more", NAMES)
    old, folder = root / "old", root / "folder"
    old.mkdir()
    if overwrite:
        handle.save(old)
    before = held(old)
    handle.rename_task("topics", "of another name")
    handle.delete_task("more")
    learn(handle, "names", NAMES)
    handle.save(root / "new")
    after, files = held(root / "new"), sorted(path.name for path in (root / "new").rglob("*.safetensors"))
    largest = max(path.stat().st_size for path in (root / "new").rglob("*") if path.is_file())
    trials = [(interrupt, (str(folder), number, how)) for number in range(1, 200)]
    trials += [(limit, (size, how)) for size in (0, 1, largest // 2, largest - 1)]
    ends, whole = [], False
    for prepare, args in trials:
        if whole and prepare is interrupt:
            continue  # there is no operation of this number any more
        shutil.copytree(old, folder)
        code = save_in_a_fork(handle, folder, prepare, *args)
        assert code in ((0, -signal.SIGKILL, -signal.SIGXFSZ) if how == "killed" else (0, 1)), (prepare, args, code)
        ends.append(held(folder))
        assert ends[-1] in (before, after), (prepare, args, ends[-1])
        assert code != 0 or ends[-1] == after
        whole = whole or (prepare is interrupt and code == 0)
        handle.save(folder)  # again: nothing is left of what was begun
        assert held(folder) == after
        assert sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "tss.json") == files
        shutil.rmtree(folder)
    assert whole
    assert len(ends) > 20
    assert before in ends
    assert after in ends[:-5]  # interrupted when it counted already


@pytest.mark.parametrize("how", ["killed", "full"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_save_that_is_interrupted_anywhere_leaves_the_old_or_the_new_one(how, overwrite, tmp_path):
    run(try_every_interruption, str(tmp_path), how, overwrite)


def save_often(folder, name, barrier):
    torch.set_num_threads(1)
    handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, name, TOPICS)
    barrier.wait()
    for _ in range(10):
        handle.save(folder, replace=True)


def test_processes_that_save_into_one_folder_leave_one_whole_save_and_can_be_read(tmp_path):
    barrier = SPAWN.Barrier(3)
    processes = [SPAWN.Process(target=save_often, args=(str(tmp_path), name, barrier)) for name in ("one", "two")]
    for process in processes:
        process.start()
    barrier.wait()
    seen = []
    while any(process.is_alive() for process in processes):
        seen.append(held(tmp_path))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    names = {held[0][0] for held in seen if held is not None}
    assert names <= {"one", "two"}
    assert len(seen) > 2
    (last,) = tss.load(make_bart(), tmp_path).tss.tasks
    assert last in ("one", "two")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert not list(tmp_path.rglob("*.partial"))

"""A save that is killed or runs out of disk, at whichever file operation, leaves the old save or the new one, whole."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys

import pytest

import tss
from tss.adapters import saving

from .conftest import NAMES, TOPICS, learn, make_bart

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.scandir", "fcntl.flock"}
NEEDS_ROOM = {"os.mkdir", "os.rename", "fsync"}  # and opening a file to write


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


def in_a_fork(prepare, save):
    """The process, a copy of this one, that `prepare` does something to and that then saves."""
    child = os.fork()
    if child == 0:  # it touches files alone: no thread that this process has is in it
        code = 2
        try:
            prepare()
            save()
            code = 0
        except OSError:
            code = 1
        finally:
            os._exit(code)
    return child


def end_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def held(folder):
    """Names and hashes of the tasks that a folder holds; None if it holds no save."""
    if not (folder / saving.MANIFEST).exists():
        return None
    return [(about["name"], about["hash"]) for _, about in saving.read(folder).tasks]


@pytest.fixture(scope="module")
def saves(tmp_path_factory):
    """What a folder holds, and what is saved into it then: a task of another name, one less, and one more."""
    handle = tss.attach(make_bart(encoder_layers=1, decoder_layers=1), tss.AdapterConfig(bottleneck=4)).tss
    learn(handle, "topics", TOPICS)
    handle.add_task("more", NAMES)
    folder = tmp_path_factory.mktemp("saves")
    handle.save(folder / "old")
    (folder / "none").mkdir()
    handle.rename_task("topics", "of another name")
    handle.delete_task("more")
    learn(handle, "names", NAMES)
    handle.save(folder / "new")
    return folder, handle.saved()


@pytest.mark.parametrize("how", ["killed", "full"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_save_that_is_interrupted_anywhere_leaves_the_old_or_the_new_one(how, overwrite, saves, tmp_path):
    root, saved = saves
    old, folder = root / ("old" if overwrite else "none"), tmp_path / "folder"
    before, after = held(old), held(root / "new")
    files = sorted(path.name for path in (root / "new").rglob("*.safetensors"))
    largest = max(path.stat().st_size for path in (root / "new").rglob("*") if path.is_file())
    trials = [(interrupt, (str(folder), number, how)) for number in range(1, 200)]
    trials += [(limit, (size, how)) for size in (0, 1, largest // 2, largest - 1)]
    ends, whole = [], False
    for prepare, args in trials:
        if whole and prepare is interrupt:
            continue  # there is no operation of this number any more
        shutil.copytree(old, folder)
        code = end_of(in_a_fork(lambda: prepare(*args), lambda: saving.save(folder, saved)))  # noqa: B023
        assert code in ((0, -signal.SIGKILL, -signal.SIGXFSZ) if how == "killed" else (0, 1)), (prepare, args, code)
        ends.append(held(folder))
        assert ends[-1] in (before, after), (prepare, args, ends[-1])
        assert code != 0 or ends[-1] == after
        whole = whole or (prepare is interrupt and code == 0)
        saving.save(folder, saved)  # again: nothing is left of what was begun
        assert held(folder) == after
        assert sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "tss.json") == files
        shutil.rmtree(folder)
    assert whole
    assert len(ends) > 20
    assert before in ends
    assert after in ends[:-5]  # interrupted when it counted already


def test_processes_that_save_into_one_folder_leave_one_whole_save_and_can_be_read(tmp_path):
    start, begin = os.pipe()

    def often(saved):
        for _ in range(30):
            saving.save(tmp_path, saved, replace=True)

    children = []
    for name in ("one", "two"):
        handle = tss.attach(make_bart(), tss.AdapterConfig(bottleneck=4)).tss
        learn(handle, name, TOPICS)
        saved = handle.saved()
        children.append(
            in_a_fork(lambda: (os.close(begin), os.read(start, 1)), lambda: often(saved))  # noqa: B023
        )
    os.close(begin)  # now both begin
    seen, codes = [], {}
    while len(codes) < 2:
        seen.append(held(tmp_path))
        for child in children:
            if child not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(ended[1])
    os.close(start)
    assert set(codes.values()) == {0}
    names = {tasks[0][0] for tasks in seen if tasks is not None}
    assert names <= {"one", "two"}
    assert len(seen) > 2
    (last,) = tss.load(make_bart(), tmp_path).tss.tasks
    assert last in ("one", "two")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    assert not list(tmp_path.rglob("*.partial"))

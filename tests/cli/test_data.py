"""`tss data`: the table on the terminal, tasks made from folders of sources, and what a failure leaves."""

from __future__ import annotations

import pytest

from tests.data import sources
from tss.data.catalog import catalog


@pytest.fixture
def small(monkeypatch):
    """The table, with sources and draws of any size."""
    table = {name: sources.resized(entry) for name, entry in catalog().items()}
    monkeypatch.setattr("tss.data.catalog.catalog", lambda: table)


def test_list_shows_every_task_with_its_source(tss):
    done = tss("data", "list")
    assert done.code == 0, done.err
    for name, entry in catalog().items():
        (line,) = [line for line in done.out.splitlines() if line.startswith(f"{name} ")]
        assert entry.licence in line
        assert ("by hand" if entry.place == "folder" else entry.name) in line
        assert ("* " in line) == (entry.place != "folder" and not entry.pinned)
    assert "* a branch, which may change" in done.out


def test_list_of_a_family_and_of_one_task(tss):
    done = tss("data", "list", "ccd")
    assert [line.split()[0] for line in done.out.splitlines()[1:6]] == [name for name in catalog() if "ccd/" in name]
    done = tss("data", "list", "sum/nyt", "conll2003")
    assert "Put train.source, train.target, val.source" in done.out
    assert "into DIR/sum/nyt/ and add --from DIR" in done.out
    assert "page     https://huggingface.co/datasets/eriktks/conll2003" in done.out
    assert "train ? / validation 3,250 / test 3,453" in done.out


def test_get_makes_tasks_and_then_keeps_them(tss, small, tmp_path):
    sources.write_reviews(tmp_path)
    words = ["data", "get", "ipod", "--from", tmp_path, "--to", tmp_path / "data"]
    done = tss(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("asc/ipod  made  6 / 2 / 3  licence: no licence file; customer reviews")
    assert tss(*words).out.startswith("asc/ipod  kept  6 / 2 / 3  licence")
    done = tss("tasks", "--data", tmp_path / "data")
    assert done.code == 0, done.err
    assert "asc/ipod  classification       2" in done.out


def test_what_fails_stops_nothing_else(tss, small, tmp_path):
    sources.write_reviews(tmp_path)
    sources.write_reviews(tmp_path, "asc/Norton")
    words = ["data", "get", "ipod", "nyt", "Norton", "--from", tmp_path, "--to", tmp_path / "data"]
    done = tss(*words)
    assert done.code == 1
    assert [line.split()[:2] for line in done.out.splitlines()] == [["asc/ipod", "made"], ["asc/Norton", "made"]]
    assert "no such file for sum/nyt" in done.err
    assert "1 of 3 tasks are missing: sum/nyt; the others are complete, and running the same command again" in done.err
    (tmp_path / "sum" / "nyt").mkdir(parents=True)
    for name in ("train", "val", "test"):
        for end in ("source", "target"):
            (tmp_path / "sum" / "nyt" / f"{name}.{end}").write_text("a line\n" * 3)
    done = tss(*words)
    assert (done.code, done.err) == (0, "")
    assert [line.split()[1] for line in done.out.splitlines()] == ["kept", "made", "kept"]


def test_a_source_whose_size_differs_is_refused_unless_asked_for(tss, tmp_path):
    sources.write_reviews(tmp_path)
    words = ["data", "get", "asc/ipod", "--from", tmp_path, "--to", tmp_path / "data"]
    done = tss(*words)
    assert done.code == 1
    assert "asc/ipod has 6 examples in its train split, but the table expects 153" in done.err
    done = tss(*words, "--any-size")
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["get", "ipod"], 1, "say where the tasks go: --to DIR"),
        (["get", "--to", "x"], 1, "name tasks or families, or take all of them with --all"),
        (["get", "ipod", "--all", "--to", "x"], 1, "or take all of them with --all, not both"),
        (["get", "ipodd", "--to", "x"], 1, "no task or family 'ipodd' in the table; did you mean 'ipod'?"),
        (["get", "ipod", "--to", "x", "--from", "nowhere"], 1, "--from nowhere: no such folder"),
        (["got"], 2, "invalid choice: 'got'"),
        (["get", "ipod", "--too", "x"], 2, "no option '--too'; did you mean '--to'?"),
    ],
)
def test_misuse_is_one_line_and_writes_nothing(tss, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    done = tss("data", *words)
    assert done.code == code
    assert message in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

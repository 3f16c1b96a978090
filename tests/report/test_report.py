"""The report's promises: every number is there, nothing is fetched, user text is harmless, cut-short runs show."""

from __future__ import annotations

import csv
import html
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from tss.errors import StateError
from tss.report import build, curves, markdown
from tss.report.build import summarise
from tss.report.html import prose
from tss.report.names import distinct_parts, duration, number, shorten, size
from tss.report.overlap import gate_overlap
from tss.report.reading import note_other_data, read_run
from tss.report.tables import Table, seeds_table, text
from tss.run.folder import RunFolder

VOID = {"meta", "link", "br", "path", "use", "rect"}


class Structure(HTMLParser):
    """Collects tags, ids, what attributes point at, and all text; fails on tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.targets, self.text = [], [], [], [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            elif name in ("href", "src", "xlink:href") and value is not None:
                self.targets.append(value)
            elif value is not None:
                self.targets += re.findall(r"url\(([^)]*)\)", value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def structure(path) -> Structure:
    parsed = Structure()
    parsed.feed(path.read_text(encoding="utf-8"))
    parsed.close()
    return parsed


def matrix_of(folder):
    return json.loads((folder / "matrix.json").read_text())["matrix"]


def read_csv(path):
    with path.open(newline="") as stream:
        return list(csv.reader(stream))


@pytest.fixture(scope="module")
def forty(tmp_path_factory, write_run):
    folder = write_run(tmp_path_factory.mktemp("runs") / "forty", 40)
    return folder, build([folder], folder).path


def test_every_number_of_the_matrix_is_printed_and_in_the_csv(make_run, tmp_path):
    folder = make_run("three", 3, forget=2.0)
    page = build(folder, tmp_path / "out").path
    matrix = matrix_of(folder)
    drawn = (tmp_path / "out" / "plots" / "matrix.svg").read_text()
    for row in matrix:
        for value in row:
            assert value is None or f">{value:.1f}<" in drawn
    assert len(re.findall(r">\d+\.\d<", drawn)) == 6
    table = read_csv(tmp_path / "out" / "tables" / "matrix.csv")
    assert [[None if cell == "" else float(cell) for cell in row[1:]] for row in table[1:]] == matrix
    assert "plots/" in structure(page).text


def test_the_page_is_one_well_formed_file_that_fetches_nothing(forty):
    parsed = structure(forty[1])
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert parsed.tags.count("svg") >= 6
    assert {t for t in parsed.targets if not t.startswith(("#", "data:"))} == set()
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {t[1:] for t in parsed.targets if t.startswith("#")} <= set(parsed.ids)
    assert "http" not in forty[1].read_text()


def test_forty_tasks_all_show(forty):
    folder, page = forty
    drawn = (folder / "plots" / "matrix.svg").read_text()
    assert len(re.findall(r">\d+\.\d<", drawn)) == 40 * 41 // 2
    text = structure(page).text
    assert all(task in text for task in read_run(folder).tasks)


def test_text_from_a_run_is_escaped_and_never_mathematics(make_run, tmp_path):
    folder = make_run("hostile", 3)
    document = json.loads((folder / "matrix.json").read_text())
    document["label"] = '<img src="x" onerror="alert(1)">'
    (folder / "matrix.json").write_text(json.dumps(document))
    page = build(folder, tmp_path / "out").path
    parsed = structure(page)
    assert "img" not in parsed.tags
    assert document["label"] in parsed.text
    assert "asc/<b>ipod</b> & $x_1$" in parsed.text
    assert "<b>ipod" not in page.read_text()
    assert parsed.open == []


@pytest.mark.parametrize("learned", [0, 1, 4])
def test_a_run_cut_short_is_reported_as_far_as_it_went(make_run, tmp_path, learned):
    folder = make_run("partial", 10, learned=learned)
    text = structure(build(folder, tmp_path / "out").path).text
    assert f"The run has not ended: {learned} of 10 tasks are learned and measured." in text
    if learned > 1:
        values = [matrix_of(folder)[j][j] for j in range(learned)]
        assert number(float(np.mean(values))) in text


def test_without_matrix_file_and_with_half_a_line_the_events_give_the_matrix(make_run, tmp_path):
    folder = make_run("torn", 4)
    expected = matrix_of(folder)
    (folder / "matrix.json").unlink()
    with (folder / "events.jsonl").open("a") as stream:
        stream.write('{"event": "step", "ta')
    run = read_run(folder)
    assert run.matrix == expected
    lines = len((folder / "events.jsonl").read_text().splitlines())
    assert (
        f"events.jsonl:{lines} is not a complete JSON line and is left out."
        in structure(build(folder, tmp_path).path).text
    )


def test_a_damaged_task_file_is_a_note_and_the_rest_is_shown(make_run, tmp_path):
    folder = make_run("damaged", 4)
    path = sorted((folder / "tasks").glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-10])
    text = structure(build(folder, tmp_path).path).text
    assert f"tasks/{path.name} cannot be read" in text
    assert len(read_run(folder).gates) == 3


def test_runs_side_by_side_show_what_each_forgot(make_run, tmp_path):
    ours, naive = make_run("tss", 4), make_run("ncl", 4, method="ncl", forget=3.0)
    page = build([ours, naive], tmp_path / "out").path
    text = structure(page).text
    lost = summarise(read_run(naive))["forgetting"]
    assert lost > 1
    for folder, value in ((ours, 0.0), (naive, lost)):
        average = summarise(read_run(folder))["average"]
        assert f"{folder.name}{number(average)}forgetting {number(value)}" in text
    rows = read_csv(tmp_path / "out" / "tables" / "metrics.csv")
    column = rows[0].index("Forgetting (FR)")
    assert [float(row[column]) for row in rows[1:]] == [0.0, lost]
    assert (tmp_path / "out" / "plots" / "forgetting.svg").is_file()


def test_runs_of_one_label_are_called_by_their_methods(make_run, tmp_path):
    folders = [make_run("a", 2), make_run("b", 2, method="ncl")]
    for folder in folders:
        document = json.loads((folder / "matrix.json").read_text())
        (folder / "matrix.json").write_text(json.dumps(document | {"label": "mine"}))
    assert "mine: tss and ncl" in structure(build(folders, tmp_path / "two").path).text
    labels = [row[0] for row in read_csv(tmp_path / "two" / "tables" / "metrics.csv")[1:]]
    assert labels == ["tss", "ncl"]
    build([*folders, folders[0]], tmp_path / "three")
    labels = [row[0] for row in read_csv(tmp_path / "three" / "tables" / "metrics.csv")[1:]]
    assert labels == ["mine · tss · a · 1", "mine · ncl", "mine · tss · a · 3"]


def test_the_soft_mask_site_is_stated(make_run, tmp_path):
    text = structure(build(make_run("tss", 2), tmp_path / "a").path).text
    assert "update: (1 − I) scales the optimizer's whole step" in text
    text = structure(build(make_run("ncl", 2, method="ncl"), tmp_path / "b").path).text
    assert "not used by this method" in text


def test_runs_alone_give_transfer(make_run, tmp_path):
    folder = make_run("seq", 2)
    alone = make_run("alone", 1, seed=5)
    document = json.loads((alone / "matrix.json").read_text())
    second = read_run(folder).tasks[1]
    document |= {"tasks": [second], "kinds": {}, "main": {}, "test_size": {}, "matrix": [[40.0]]}
    (alone / "matrix.json").write_text(json.dumps(document))
    (alone / "events.jsonl").unlink()
    build(folder, tmp_path, one=[alone])
    rows = read_csv(tmp_path / "tables" / "metrics.csv")
    gained = float(rows[1][rows[0].index("Transfer against one task alone")])
    assert gained == pytest.approx(matrix_of(folder)[1][1] - 40.0, rel=1e-12)
    with pytest.raises(StateError, match="the comparison needs a run of one task"):
        build(folder, tmp_path, one=[folder])


def test_runs_of_other_settings_are_no_seeds_of_one(make_run):
    runs = [read_run(make_run(f"seed{seed}", 3, seed=seed)) for seed in (1, 2)]
    summaries = [{"average": 1.0}, {"average": 2.0}]
    assert seeds_table(runs, summaries, "seeds") is not None
    for changes in ({"training": {"epochs": 9}}, {"limits": {"train": 3}}, {"adapters": {"bottleneck": 7}}):
        runs[1].config = {**runs[0].config, **changes}
        assert seeds_table(runs, summaries, "seeds") is None
    runs[1].config = {**runs[0].config, "seed": 99, "log_seconds": 3, "label": "other"}
    assert seeds_table(runs, summaries, "seeds") is not None


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, True), ({"limits": {"train": 3}}, False), ({"seed": 5}, False), ({"families": {"asc": {"epochs": 3}}}, True),
     ({"families": {"asc": {"limits": {"train": 3}}}}, False)],
)  # fmt: skip
def test_runs_on_other_data_are_told_apart(make_run, changes, told):
    runs = [read_run(make_run(f"seed{seed}", 1, seed=seed)) for seed in (1, 2)]
    for run in runs:
        run.damage.clear()
        run.digests = dict.fromkeys(run.tasks, run.folder.name)
    runs[1].config = {**runs[0].config, **changes}
    runs[1].digests = dict.fromkeys(runs[1].tasks, "of other files")
    note_other_data(runs)
    assert [len(run.damage) for run in runs] == [0, told]
    if told:
        assert f"had other data than in {runs[0].folder}" in runs[1].damage[0]


def test_markdown_has_no_html_and_no_broken_row():
    shown = markdown.table(Table("t", {"name": text}, [["a|b <script>\n"]]))
    assert shown.splitlines()[2] == "| a\\|b &lt;script>  |"


def test_seeds_of_one_setting_give_mean_and_deviation(make_run):
    folders = [make_run(f"seed{i}", 3, seed=i) for i in range(3)]
    runs = [read_run(folder) for folder in folders]
    summaries = [summarise(run) for run in runs]
    averages = [summary["average"] for summary in summaries]
    (row,) = seeds_table(runs, summaries, "seeds").rows
    assert row[:3] == ["tss", 3, f"{np.mean(averages):.2f} ± {np.std(averages, ddof=1):.2f}"]
    assert seeds_table(runs[:1], summaries[:1], "seeds") is None


def test_the_same_run_gives_the_same_bytes(make_run, tmp_path):
    folder = make_run("again", 2)
    assert build(folder, tmp_path / "a").path.read_bytes() == build(folder, tmp_path / "b").path.read_bytes()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StateError, match="no such run folder"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(StateError, match="not a run folder"):
        read_run(tmp_path)


def test_overlap_of_equal_opposite_and_independent_gates():
    rng = np.random.default_rng(0)
    bits = rng.random((64, 64)) < 0.5

    def pack(x):
        return {"a": np.packbits(x, axis=1, bitorder="little")}

    overlap = gate_overlap(
        {"one": pack(bits), "same": pack(bits), "not": pack(~bits), "other": pack(rng.random((64, 64)) < 0.5)}
    )
    assert overlap.jaccard[0, 1] == 1
    assert overlap.jaccard[0, 2] == 0
    assert overlap.jaccard[0, 3] == pytest.approx(overlap.expected[0, 3], abs=0.03)
    assert overlap.expected[0, 3] == pytest.approx(1 / 3, abs=0.02)
    assert gate_overlap({"one": pack(bits)}) is None


def test_names_and_numbers():
    assert shorten("abcdefghij", 7) == "abc…hij"
    assert distinct_parts(["m.enc.0.ad.down", "m.enc.1.ad.down", "m.dec.0.ad.up"]) == [
        "enc.0.down",
        "enc.1.down",
        "dec.0.up",
    ]
    assert [number(-0.001), number(1.5, signed=True), number(-2.0), number(None)] == ["0.00", "+1.50", "−2.00", "–"]
    assert [duration(4.21), duration(185), duration(8040), duration(None)] == ["4.2 s", "3 min 05 s", "2 h 14 min", "–"]
    assert [size(393216), size(12), size(1024**3)] == ["384 KiB", "12 B", "1.00 GiB"]


def test_a_matrix_that_contradicts_the_events_is_told_and_not_believed(make_run, tmp_path):
    folder = make_run("mine", 3)
    path = folder / "matrix.json"
    content = json.loads(path.read_text())
    measured, content["matrix"][2][1] = content["matrix"][2][1], 99.5
    path.write_text(json.dumps(content))
    report = build(folder, tmp_path / "out")
    tasks = content["tasks"]
    assert any(
        f"matrix.json says 99.5 for {tasks[1]} after {tasks[2]}, but {measured}" in line for line in report.damage
    )
    assert read_run(folder).matrix[2][1] == measured
    assert "Damaged: matrix.json says 99.5" in structure(report.path).text


def test_layers_that_a_task_does_not_run_are_blank_and_blame_nothing(make_run, tmp_path):
    folder = make_run("mine", 3)
    path, lines = folder / "events.jsonl", []
    for event in map(json.loads, (folder / "events.jsonl").read_text().splitlines()):
        if event["event"] == "task_end":
            event["unused"] = [layer for layer in event["density"] if "decoder" in layer]
            event["flipped"] |= dict.fromkeys(event["unused"], 0.0)
            event["importance_mean"] |= dict.fromkeys(event["unused"], 0.0)
        lines.append(json.dumps(event) + "\n")
    path.write_text("".join(lines))
    report = build(folder, tmp_path / "out")
    text = structure(report.path).text
    assert "Blank: layers that the task does not run" in text
    assert "6 of 12 matrices, which no task ran, are left out" in text
    for name in ("flipped", "free", "moved"):
        rows = (report.path.parent / "tables" / f"{name}.csv").read_text().splitlines()[1:]
        assert len(rows) == 6
        assert all("encoder" in row for row in rows)


def test_what_the_soft_mask_leaves_and_how_far_scores_moved_are_drawn_by_layer(make_run, tmp_path):
    folder = make_run("mine", 3)
    build(folder, tmp_path / "out")
    ends = read_run(folder).by_task("task_end")
    for name, value in (
        ("free", lambda end, x: 1 - end["importance_mean"][x]),
        ("moved", lambda end, x: end["moved"][x]),
    ):
        head, *rows = read_csv(tmp_path / "out" / "tables" / f"{name}.csv")
        assert head == ["layer", *ends]
        for layer, *shown in rows:
            assert [float(cell) for cell in shown] == [value(end, layer) for end in ends.values()]
    drawn = (tmp_path / "out" / "plots" / "free.svg").read_text()
    assert {"90.0", "81.0", "72.9"} <= set(re.findall(r">(\d+\.\d)<", drawn))
    drawn, layer = (tmp_path / "out" / "plots" / "moved.svg").read_text(), rows[0][0]
    assert f">{ends[head[1]]['moved'][layer]:.3f}<" in drawn
    change_events(folder, lambda event: {key: value for key, value in event.items() if key != "moved"})
    build(folder, tmp_path / "before")  # as runs of earlier versions are
    assert not (tmp_path / "before" / "plots" / "moved.svg").exists()


def test_each_of_many_runs_has_a_card(make_run, tmp_path):
    folders = [make_run(f"run{i}", 2, method="ncl", forget=float(i), seed=i) for i in range(8)]
    text = structure(build(folders, tmp_path / "out").path).text.split("Runs side by side")[0]
    for folder in folders:
        summary = summarise(read_run(folder))
        assert f"{folder.name}{number(summary['average'])}forgetting {number(summary['forgetting'])}" in text


def test_words_between_backticks_are_code_and_nothing_else_is():
    assert prose("p", "of `one` or <b>`a<b`</b>", "caption") == (
        '<p class="caption">of <code>one</code> or &lt;b&gt;<code>a&lt;b</code>&lt;/b&gt;</p>'
    )
    assert prose("p", "a ` alone") == "<p>a ` alone</p>"


def change_events(folder, change):
    path = folder / "events.jsonl"
    events = [change(event) for event in map(json.loads, path.read_text().splitlines())]
    path.write_text("".join(json.dumps(event) + "\n" for event in events if event is not None))


@pytest.mark.parametrize("count", [2, 5, 14])
def test_a_cell_says_its_value_where_the_pointer_rests(make_run, tmp_path, count):
    folder = make_run("mine", count)
    build(folder, tmp_path / "out")
    drawn, tasks, matrix = (
        (tmp_path / "out" / "plots" / "matrix.svg").read_text(),
        read_run(folder).tasks,
        matrix_of(folder),
    )
    number_at = r' x="([\d.]+)" y="([\d.]+)"[^>]*>([\d.]+)</text>'
    printed = {(float(x), float(y), text) for x, y, text in re.findall(number_at, drawn)}
    cells = re.findall(
        r'<rect class="cell"[^>]* x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"><title>([^<]*)</title>',
        drawn,
    )
    assert len(cells) == count * (count + 1) // 2
    values = iter([(i, j) for i in range(count) for j in range(i + 1)])
    for left, top, width, height, title in cells:
        i, j = next(values)
        assert html.unescape(title) == f"after {tasks[i]} on {tasks[j]}: {matrix[i][j]:.2f}"
        inside = [
            text for x, y, text in printed
            if 0 < x - float(left) < float(width) and 0 < y - float(top) < float(height) and "." in text
        ]  # fmt: skip
        assert inside == [f"{matrix[i][j]:.1f}"]


def test_what_was_computed_where_and_each_average_stand_at_the_top(make_run, tmp_path):
    ours, naive = make_run("tss", 4), make_run("ncl", 4, method="ncl", forget=3.0, seed=7)
    top = structure(build([ours, naive], tmp_path / "out").path).text.split("Runs side by side")[0]
    assert "bfloat16, cpu (cpu AVX2), 2 threads, seed 0" in top
    assert "bfloat16, cpu (cpu AVX2), 2 threads, seed 7" in top
    for folder in (ours, naive):
        assert f"{folder.name}{number(summarise(read_run(folder))['average'])}" in top
    assert "tss: 6.00 KiB of gates, 1 bit each" in top or "tss: 6.0 KiB of gates, 1 bit each" in top


@pytest.mark.parametrize(
    ("method", "expected"),
    [("tss", "gates, 1 bit each"), ("supsup", "gates, 1 bit each"), ("one", "adapter's weights"),
     ("lora", "LoRA's weights"), ("hat", "gates of hidden units")],
)  # fmt: skip
def test_what_is_kept_is_called_by_its_name(make_run, tmp_path, method, expected):
    folder = make_run("mine", 3, method=method)
    change_events(
        folder, lambda e: e | {"bytes": {"gates": 900_000, "head": 9, "total": 900_009}} if "bytes" in e else e
    )
    text = structure(build(folder, tmp_path / "out").path).text
    assert f"879 KiB of {expected} and 9 B of head" in text
    assert expected in (tmp_path / "out" / "plots" / "bytes.svg").read_text().replace("&apos;", "'")
    assert expected in read_csv(tmp_path / "out" / "tables" / "cost.csv")[0]


def test_a_method_that_keeps_heads_alone_says_so(make_run, tmp_path):
    text = structure(build(make_run("mine", 3, method="ncl"), tmp_path / "out").path).text
    assert "What each learned task adds on disk: its head alone." in text
    assert "1 bit each" not in text


def test_validation_stands_beside_the_test_and_used_adapters_are_named(make_run, tmp_path):
    folder = make_run("mine", 4)

    def reads_encoder(event):
        if event["event"] == "task_end" and event["index"] < 2:
            unused = [layer for layer in event["density"] if "decoder" in layer]
            return event | {"unused": unused, "density": event["density"] | dict.fromkeys(unused, 0.0)}
        return event

    change_events(folder, reads_encoder)
    build(folder, tmp_path / "out")
    head, *rows = read_csv(tmp_path / "out" / "tables" / "tasks.csv")
    tasks = [dict(zip(head, row, strict=True)) for row in rows]
    assert [task["adapters used"] for task in tasks] == ["encoder", "encoder", "all", "all"]
    assert all(0.45 <= float(task["gates open"]) <= 0.55 for task in tasks)
    best = [event for event in read_run(folder).of("epoch") if event["epoch"] == 4]
    expected = [event["validation"] if event["metric"] != "loss" else None for event in best]
    assert [float(task["validation"]) if task["validation"] else None for task in tasks] == expected
    assert None in expected


def test_the_loss_is_drawn_against_true_steps_however_few_were_recorded(make_run, tmp_path):
    folder = make_run("mine", 3)
    change_events(folder, lambda e: None if e["event"] == "step" and (e["step"], e["epoch"]) != (3, 1) else e)
    run = read_run(folder)
    assert [curves.steps_per_epoch(run, task) for task in run.tasks] == [10, 10, 10]
    assert [curves._loss_curve(run, task, 9)[0][0] for task in run.tasks] == [14, 14, 14]
    assert "its task's number of optimizer steps, 150 in total" in structure(build(folder, tmp_path / "out").path).text


def test_examples_and_the_meaning_of_names_are_on_the_page(make_run, tmp_path):
    folder = make_run("mine", 3)
    parsed = structure(build(folder, tmp_path / "out").path)
    assert "mine: 9 answers" in parsed.text
    assert "<i>answer</i> 0" in parsed.text
    assert "i" not in parsed.tags
    assert "O B-PER" in parsed.text
    assert "popup scores choose a sub-network of frozen random adapters" in parsed.text
    assert "named entity recognition" in parsed.text
    assert "summarisation" not in parsed.text
    RunFolder(folder).predictions(1, read_run(folder).tasks[1]).write_text("no JSON\n")
    report = build(folder, tmp_path / "out")
    assert any("predictions/02-" in line and "cannot be read" in line for line in report.damage)


def test_a_thousand_tasks_are_reported_in_seconds(tmp_path):
    """Whatever is drawn or tabled for each pair of tasks, or looked up for each task, would take minutes."""
    count, folder = 1000, tmp_path / "many"
    folder.mkdir()
    tasks = [f"asc/{i}" for i in range(count)]
    matrix = [[50.0 if j <= i else None for j in range(count)] for i in range(count)]
    main = dict.fromkeys(tasks, "macro_f1")
    (folder / "matrix.json").write_text(json.dumps({"tasks": tasks, "main": main, "method": "tss", "matrix": matrix}))
    with (folder / "events.jsonl").open("w") as stream:
        for index, task in enumerate(tasks):
            layers = {"encoder.down": 0.5, "encoder.up": 0.4}
            about = {"task": task, "index": index, "time": 1.7e9}
            events = [
                {"event": "task_begin", "train": 9, "validation": 9, "test": 9, "kind": "classification"},
                {"event": "step", "epoch": 0, "step": 0, "loss": 1.0},
                {"event": "epoch", "epoch": 0, "loss": 1.0, "validation": 50.0, "metric": "macro_f1"},
                {"event": "task_end", "best_epoch": 0, "seconds": 1.0, "bytes": {"gates": 9, "head": 9, "total": 18},
                 "density": layers, "flipped": layers, "importance_mean": layers},
            ]  # fmt: skip
            stream.writelines(json.dumps(event | about) + "\n" for event in events)
    started = time.process_time()
    report = build(folder, tmp_path / "out")
    assert time.process_time() - started < 20
    assert report.path.stat().st_size < 20e6

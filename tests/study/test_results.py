"""The statistics of a study against numbers worked out by hand, from run folders alone."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.run.conftest import TASKS
from tests.study.conftest import pretend
from tss.errors import StateError
from tss.report.names import number
from tss.report.style import drawing
from tss.run.folder import RunFolder
from tss.study.facts import facts_of, settings_table
from tss.study.figures import Point, binary_axis, bytes_picture, spaced
from tss.study.folder import StudyFolder
from tss.study.report import build
from tss.study.results import OVERALL, Difference, Spread, cost_of, paired, read_study, spread, summaries
from tss.study.tables import differences, families_table, shown_difference, shown_spread, validated, validation_table

ROWS = ["tss", "one", "ncl", "mtl"]
FINAL = {"tss": (60, 64, 68), "one": (58, 61, 67), "ncl": (40, 50, 30)}
"""Score at the end of every task, by seed."""
RUN_END = {"switch_seconds": 2.5e-5}
END = {"seconds": 10.0, "peak_bytes": 500, "bytes": {"gates": 100, "head": 20, "total": 120}}


def matrix(row: str, seed: int) -> list[list[float | None]]:
    """Each task keeps what it learned, in ncl it loses 10 points with the next; by mtl all are at 70."""
    if row == "mtl":
        return [[None] * 3, [None] * 3, [70.0] * 3]
    final = float(FINAL[row][seed])
    lost = 10.0 if row == "ncl" else 0.0
    return [[final + lost, None, None], [final, final + lost, None], [final, final, final + lost]]


@pytest.fixture
def study(tmp_path, cells):
    """A study whose runs are there but for one, which failed, and one that was not begun."""
    folder, made = StudyFolder(tmp_path / "out"), cells(methods=ROWS, seeds=[0, 1, 2])
    with folder.lock():
        folder.fix(made)
    for cell in made:
        if cell.name not in ("ncl-1-2", "mtl-1-2"):
            trained = {"adapters": 1000, "head": 50}
            pretend(folder, cell, matrix(cell.row, cell.seed), begin={"trained": trained}, end=END, run_end=RUN_END)
    folder.note(next(cell for cell in made if cell.name == "ncl-1-2"), "the loss is nan")
    return folder


def test_means_deviations_and_paired_differences_are_those_of_the_formulas(study):
    read = read_study(study.path)
    found = summaries(read)
    average = {row: {place: values["average"] for place, values in found[row].items()} for row in ROWS}
    assert average["tss"] == {("1", 0): 60, ("1", 1): 64, ("1", 2): 68}
    value = spread(average["tss"].values())
    assert (value.count, value.mean, value.deviation) == (3, 64, 4)
    against = differences(read, found, OVERALL)["tss"]
    assert set(against) == {"one", "ncl"}  # no row of lora here
    # differences 2, 3, 1: mean 2, deviation 1; t of two degrees of freedom at 97.5 % is 4.302653
    one = against["one"]
    half = 4.302653 / math.sqrt(3)
    assert (one.count, one.mean, one.low, one.high) == (3, 2, pytest.approx(2 - half), pytest.approx(2 + half))
    # pairs alone count: the third run of ncl is missing; ncl's last task is 10 higher, a third of it in the mean
    ncl = against["ncl"]
    expected = [60 - (40 + 10 / 3), 64 - (50 + 10 / 3)]
    assert (ncl.count, ncl.mean) == (2, pytest.approx(sum(expected) / 2))
    assert differences(read, found, OVERALL)["one"]["one"] is None
    assert differences(read, found, "ner")["tss"]["one"].mean == 2


def test_transfer_and_gaps_are_against_the_runs_of_the_same_place(study):
    read = read_study(study.path)
    found = summaries(read)
    assert [values["transfer"] for values in found["tss"].values()] == [2, 3, 1]
    assert all(values["transfer"] is None for values in found["one"].values())
    assert [values["gap_one"] for values in found["mtl"].values()] == [12, 9]
    assert [values["gap_mtl"] for values in found["tss"].values()] == [-10, -6, None]
    assert [values["forgetting"] for values in found["ncl"].values()] == [10, 10]
    for values in found["mtl"].values():
        assert (values["average"], values["learning"], values["forgetting"], values["gap_mtl"]) == (
            70,
            None,
            None,
            None,
        )


def test_one_pair_has_no_interval_and_no_pair_no_difference():
    assert paired({("1", 0): 3.0, ("1", 1): 9.0}, {("1", 0): 1.0}) == Difference(1, 2.0, None, None)
    assert paired({("1", 0): 3.0}, {("2", 0): 1.0}) is None
    assert spread([None, None]) is None
    assert spread([5.0, None]).deviation is None
    assert shown_difference(paired({("1", 0): 3.0}, {("1", 0): 1.0})) == "+2.0 (1)"
    assert shown_difference(Difference(4, -1.25, -2.0, 0.5)) == f"{number(-1.25, 1)} [−2.0, +0.5] (4)"
    assert shown_spread(spread([1.0, 3.0])) == "2.0 ± 1.4"


def test_costs_are_sums_over_tasks_and_means_per_task(study):
    read = read_study(study.path)
    run = read.runs["tss"]["1", 0]
    shared = run.folder / "adapters"
    shared.mkdir()
    tensors = {"shared.scores": np.zeros(7, np.float32), "extra.fisher": np.zeros((2, 5), np.float32)}
    save_file(tensors, shared / "shared-0123456789ab.safetensors", {"about": "{}"})
    (shared / "frozen-0123456789ab.safetensors").write_bytes(b"x" * 1000)  # follows from the seed
    cost = cost_of(run)
    assert (cost.seconds, cost.peak_bytes, cost.adapters, cost.head) == (30.0, 500, 1000, 50)
    assert (cost.gate_bytes, cost.head_bytes, cost.switch_seconds) == (100, 20, 2.5e-5)
    assert (cost.shared_bytes, cost.learning_bytes, cost.total_bytes) == (0, 28 + 40, 3 * 120)
    run.method = "ewc"  # whose tasks answer by the weights that they share
    cost = cost_of(run)
    assert (cost.shared_bytes, cost.learning_bytes, cost.total_bytes) == (28, 40, 3 * 120 + 28)


def test_the_report_holds_the_numbers_what_is_missing_and_why(study, tmp_path):
    report = build(study.path, tmp_path / "report")
    page, text = report.path.read_text(), (tmp_path / "report" / "report.md").read_text()
    for document in (page, text):
        assert "64.0 ± 4.0" in document
        assert "+2.0 [−0.5, +4.5] (3)" in document
        assert "ncl-1-2 failed: the loss is nan" in document
        assert "1 runs have not finished and are in none of the tables: mtl-1-2" in document
        assert "10 of 12 finished" in document
        assert "25.0 µs" in document
    assert "| ncl | 2/3 |" in text
    assert "<svg" in page
    assert "plots/bytes.svg" in text
    assert (tmp_path / "report" / "plots" / "bytes.svg").is_file()
    tables = {
        path.stem: list(csv.DictReader(path.open(encoding="utf-8"))) for path in (tmp_path / "report/tables").iterdir()
    }
    (row,) = [r for r in tables["paired"] if (r["method"], r["minus"], r["over"]) == ("tss", "one", OVERALL)]
    assert (row["n"], float(row["difference"])) == ("3", 2.0)
    assert {r["over"] for r in tables["paired"]} == {OVERALL, "asc", "ner", "drg"}
    assert len(tables["runs"]) == 10
    assert len(tables["tasks"]) == 10 * len(TASKS)
    assert {r["method"]: float(r["seconds"]) for r in tables["efficiency"]} == dict.fromkeys(ROWS, 30.0)
    assert report.damage == []


def test_the_report_shows_one_run_of_each_method_from_a_place_that_all_have(study, tmp_path):
    read = read_study(study.path)
    place, runs = read.one_place()
    assert (place, [run.label for run in runs]) == (("1", 0), ROWS)
    del read.runs["ncl"]["1", 0]
    assert read.one_place()[0] == ("1", 1)  # the first that still has all
    del read.runs["ncl"]["1", 1]
    assert [run.label for run in read.one_place()[1]] == ["tss", "one", "mtl"]
    page, text = build(study.path, tmp_path).path.read_text(), (tmp_path / "report.md").read_text()
    for document in (page, text):
        assert "One run per method: order 1, seed 0, the first order and seed with a finished run of every" in document
        assert "popup scores choose a sub-network" in document
        assert "named entity recognition" in document
    assert [re.findall(rf">({value}\.0)<", (tmp_path / f"plots/matrix-{i}.svg").read_text())[0] for i, value in
            enumerate((60, 58, 50, 70), start=1)] == ["60.0", "58.0", "50.0", "70.0"]  # fmt: skip
    assert "with <code>one</code> in the same order" in page
    assert "`" not in page
    top = page.split("<nav>")[0]
    for row, shown in (("tss", "64.0 ± 4.0"), ("mtl", "70.0 ± 0.0")):
        assert f'<span class="what">{row}</span><b class="">{shown}</b>' in top
    assert '<span class="under bad">forgetting 10.0</span>' in top


def test_a_study_with_runs_missing_everywhere_names_what_its_examples_leave_out(tmp_path, cells):
    folder, made = StudyFolder(tmp_path / "out"), cells(methods=ROWS, seeds=[0])
    with folder.lock():
        folder.fix(made)
    for cell in made[:2]:
        pretend(folder, cell, matrix(cell.row, 0), end=END)
    text = build(folder.path).path.with_suffix(".md").read_text()
    assert "seed 0, the first with a finished run of the most methods; not of ncl, mtl." in text


def test_the_facts_state_soft_mask_budget_and_settings(tmp_path, cells):
    methods = {
        "tss": {},
        "unmasked": {"method": "tss", "method_options": {"soft_mask": "none"}},
        "ncl": {"training": {"adapter_lr": 0.5, "score_lr": 0.25}, "families": {"ner": {"epochs": 7}}},
    }
    changes = {"training": {"epochs": 3, "batch_size": 4, "grad_accumulation": 2}, "limits": {"train": 6}}
    folder, made = StudyFolder(tmp_path / "out"), cells(methods=methods, changes=changes)
    with folder.lock():
        folder.fix(made)
    for cell in made:
        pretend(folder, cell, matrix("tss", 0), begin={"train": 5}, end=END)
    study = read_study(folder.path)
    facts = dict(facts_of(study))
    assert facts["training budget"] == "differs by method: epochs"
    assert facts["epochs"] == "tss, unmasked: 3 · ncl: 3 (ner: 7)"
    assert (facts["batch size"], facts["training examples"], facts["early stopping"]) == ("8", "5 per task", "no")
    assert facts["soft mask"].startswith("tss: gradient: (1 − I) scales the gradient before the optimizer sees it")
    assert facts["soft mask"].endswith("unmasked: none: no soft mask (ablation)")
    settings = {row[0]: row[1:] for row in settings_table(study).rows}
    assert settings["unmasked"][0] == "tss"
    assert "soft_mask = none" in settings["unmasked"][1]
    assert "training.adapter_lr = 0.5" in settings["ncl"][2]
    assert "score_lr" not in settings["ncl"][2]  # which a method without gates does not use
    assert "families.ner.epochs = 7" in settings["ncl"][2]
    del study.configs["ncl"]
    assert dict(facts_of(study))["training budget"] == "equal for all methods"


def test_validation_is_compared_with_the_test_where_the_main_metric_chose_the_epoch(study):
    read = read_study(study.path)
    for seed in (0, 1):
        run = read.runs["tss"]["1", seed]
        for event in run.of("task_end"):
            event["best_epoch"] = 1
        for task, metric, value in zip(run.tasks, ("f1", "f1", "loss"), (62.0, 70.0, 0.5), strict=True):
            run.events.append({"event": "epoch", "task": task, "epoch": 1, "metric": metric, "validation": value})
        read.runs["tss"]["1", seed] = dataclasses.replace(run)
    assert validated(read.runs["tss"]["1", 0]) == [(62.0, 60.0), (70.0, 60.0)]
    (row, *others) = validation_table(read).rows
    assert row[:2] == ["tss", 4]
    assert [value.mean for value in row[2:]] == [66, 62, 4]
    assert all(other[1] is None for other in others)
    assert validation_table(read_study(study.path)) is None


def test_labels_of_the_figure_stand_in_the_order_of_their_points_and_ticks_are_few():
    assert spaced([1.0, 1.0, 9.0], 2.0) == [0.0, 2.0, 9.0]
    places = spaced([3.0, 3.1, 3.2, 8.0, 8.0], 1.0)
    assert all(b - a >= 1.0 - 1e-9 for a, b in itertools.pairwise(places))
    for kept in ([1024.0], [900.0, 5e9], [3e6, 3.1e6]):
        low, high, ticks = binary_axis(kept)
        assert low < min(kept) <= max(kept) < high
        assert 2 <= len(ticks) <= 7
    close = [Point(name, i, 1e6, Spread(3, score, 1.0)) for i, (name, score) in enumerate([("a", 50.0), ("b", 50.2)])]
    with drawing():
        drawn = bytes_picture(close).svg
    heights = {name: float(y) for y, name in re.findall(r' y="([\d.]+)"[^>]*>([ab])  ?50\.\d<', drawn)}
    assert heights["a"] - heights["b"] >= 10  # the higher score above, a line apart
    assert bytes_picture([]) is None


def test_families_with_the_names_of_columns_have_columns_of_their_own(cells, tmp_path, monkeypatch):
    folder, (cell, other) = StudyFolder(tmp_path / "out"), cells()
    names = ["method/a", "all tasks/b", "asc/c"]
    made = [dataclasses.replace(one, config=one.config.model_copy(update={"tasks": names})) for one in (cell, other)]
    with folder.lock():
        folder.fix(made)
    for one in made:
        pretend(folder, one, [[10.0, None, None], [10.0, 20.0, None], [10.0, 20.0, 60.0]])
    read = read_study(folder.path)
    (row, _) = families_table(read, summaries(read)).rows
    assert list(families_table(read, summaries(read)).columns) == [
        "method", "method (family)", "all tasks (family)", "asc", OVERALL,
    ]  # fmt: skip
    assert [value.mean for value in row[1:]] == [10, 20, 60, 30]
    build(folder.path, tmp_path / "report")


def test_runs_on_other_data_are_damage(study):
    runs = [run for row in read_study(study.path).runs.values() for run in row.values()]
    assert read_study(study.path).damage == []
    state = RunFolder(runs[0].folder).load_state()
    state.digests = dict.fromkeys(runs[0].tasks, "one")
    state.save(RunFolder(runs[0].folder).state)
    other = RunFolder(read_study(study.path).runs["one"]["1", 0].folder)
    state = other.load_state()
    state.digests = dict.fromkeys(runs[0].tasks, "two")
    state.save(other.state)
    damage = read_study(study.path).damage
    assert len(damage) == len(runs[0].tasks)
    assert all("had other data than in" in line for line in damage)


def test_an_edited_result_is_damage(study):
    path = study.path / "runs" / "tss-1-0" / "matrix.json"
    path.write_text(path.read_text().replace("60.0", "99.0"))
    report = build(study.path)
    assert "matrix.json is not what the run wrote" in report.damage[0]
    assert "99" not in report.summary


def test_a_study_without_a_finished_run_says_why(tmp_path, cells):
    folder, made = StudyFolder(tmp_path / "out"), cells()
    with folder.lock():
        folder.fix(made)
    folder.note(made[0], "no memory")
    with pytest.raises(StateError, match=r"no run of the study has finished.*tss-1-2021 failed: no memory"):
        build(folder.path)

"""The statistics of a study against numbers worked out by hand, from run folders alone."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.run.conftest import TASKS
from tests.study.conftest import pretend
from tss.errors import StateError
from tss.report.names import number
from tss.study.folder import StudyFolder
from tss.study.report import build
from tss.study.results import OVERALL, Difference, cost_of, paired, read_study, spread, summaries
from tss.study.tables import differences, shown_difference, shown_spread

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

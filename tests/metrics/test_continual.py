"""Continual metrics against a worked example, and their handling of cells that were not measured."""

from __future__ import annotations

import json

import pytest

from tss.metrics import continual

GOLDEN = [[80, 10, 12, 9], [85, 70, 20, 15], [78, 74, 60, 30], [82, 72, 66, 50]]
SEEN = [[cell if j <= i else None for j, cell in enumerate(row)] for i, row in enumerate(GOLDEN)]


def test_golden_vector():
    assert continual.forgetting(GOLDEN) == pytest.approx(-10 / 3)
    assert continual.forgetting_chaudhry(GOLDEN) == pytest.approx(-1 / 3)
    assert continual.forgetting_max(GOLDEN) == pytest.approx(5 / 3)
    assert continual.bwt(GOLDEN) == pytest.approx(10 / 3)
    assert continual.average(GOLDEN) == pytest.approx((82 + 72 + 66 + 50) / 4)
    assert continual.learning(GOLDEN) == pytest.approx((80 + 70 + 60 + 50) / 4)


def test_metrics_with_references():
    untrained, one, mtl = [5, 6, 7, 8], [80, 60, 65, 52], [90, 80, 70, 60]
    assert continual.fwt(GOLDEN, untrained) == pytest.approx(((10 - 6) + (20 - 7) + (30 - 8)) / 3)
    assert continual.transfer(GOLDEN, one) == pytest.approx(((70 - 60) + (60 - 65) + (50 - 52)) / 3)
    assert continual.gap(GOLDEN, one) == pytest.approx(67.5 - 64.25)
    found = continual.summary(GOLDEN, one, mtl=mtl, untrained=untrained)
    assert found["gap_mtl"] == pytest.approx(67.5 - 75)
    assert found["gap_one"] == pytest.approx(67.5 - 64.25)


def test_cells_before_learning_are_needed_by_forward_transfer_alone():
    whole, seen = (continual.summary(m, [1] * 4, untrained=[0] * 4) for m in (GOLDEN, SEEN))
    assert seen.pop("fwt") is None
    assert whole.pop("fwt") == pytest.approx(20)
    assert seen == whole


def test_an_unmeasured_cell_is_not_a_zero():
    holed = [*SEEN[:3], [82, None, 66, 50]]
    found = continual.summary(holed)
    assert [found[name] for name in ("average", "forgetting", "forgetting_max", "bwt")] == [None] * 4
    assert found["learning"] == 65.0


def test_one_task_has_no_forgetting():
    found = continual.summary([[70.0]], [60.0], untrained=[1.0])
    assert (found["average"], found["learning"], found["gap_one"]) == (70.0, 70.0, 10.0)
    assert [found[n] for n in ("forgetting", "forgetting_chaudhry", "forgetting_max", "bwt", "fwt", "transfer")] == [
        None
    ] * 6


def test_rows_still_to_come_leave_only_none():
    found = continual.summary([[70.0, None], [None, None]])
    assert set(found.values()) == {None}


def test_no_task_at_all():
    assert set(continual.summary([], [], untrained=[]).values()) == {None}


def test_families_have_means_of_their_own():
    families = continual.by_family(SEEN, ["asc", "sum", "asc", "sum"])
    assert list(families) == ["asc", "sum"]
    assert families["asc"] == {"average": 74.0, "learning": 70.0, "forgetting": pytest.approx((-2 - 6) / 2)}
    assert families["sum"] == {"average": 61.0, "learning": 60.0, "forgetting": -2.0}
    alone = continual.by_family(SEEN, ["asc", "asc", "asc", "sum"])["sum"]
    assert alone == {"average": 50.0, "learning": 50.0, "forgetting": None}
    assert continual.summary(SEEN, families=["a"] * 4)["families"]["a"]["average"] == continual.average(SEEN)


def test_a_summary_is_json():
    found = continual.summary(SEEN, families=["a", "b", "a", "b"])
    assert json.loads(json.dumps(found)) == found


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="row 1 has 1 cells, there are 2 rows"):
        continual.average([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match="3 values for 4 tasks"):
        continual.transfer(GOLDEN, [1, 2, 3])

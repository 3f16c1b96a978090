"""Continual-learning metrics of a matrix of results.

`matrix[i][j]`, written a[i][j], is the main metric (0 to 100) of task j after task i was learned; T tasks give T rows
of T cells. A cell that was not measured is None. None never counts as 0: a metric that needs an unmeasured cell is
None, and so is a metric that is not defined for T tasks (forgetting for a single task).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Cell = float | None
Matrix = Sequence[Sequence[Cell]]


def average(matrix: Matrix) -> Cell:
    """Return the mean over j of a[T-1][j]: all tasks, after the last one."""
    _check(matrix)
    return _mean(matrix[-1]) if matrix else None


def learning(matrix: Matrix) -> Cell:
    """Return the mean over j of a[j][j]: each task just after it was learned."""
    _check(matrix)
    return _mean(_diagonal(matrix))


def forgetting(matrix: Matrix) -> Cell:
    """Return the mean over j < T-1 of (a[j][j] - a[T-1][j]): the paper's forgetting rate.

    Differs from Chaudhry et al. (2018), who compare with the best row instead of the row just after learning.
    """
    _check(matrix)
    return _mean(_minus(matrix[j][j], matrix[-1][j]) for j in range(len(matrix) - 1))


def forgetting_chaudhry(matrix: Matrix) -> Cell:
    """Return the mean over j < T-1 of (max over rows l < T-1 of a[l][j], minus a[T-1][j]); Chaudhry et al. (2018).

    Rows before task j was learned are included if they were measured (zero-shot cells), as in their formula; negative
    when the last task improved the earlier ones.
    """
    _check(matrix)
    return _mean(_minus(_max(cells), last) for cells, last in _columns(matrix, matrix[:-1]))


def forgetting_max(matrix: Matrix) -> Cell:
    """Return the mean over j < T-1 of (max over all rows of a[l][j], minus a[T-1][j]).

    Differs from Chaudhry et al. (2018) by including the last row, so that it is never negative.
    """
    _check(matrix)
    return _mean(_minus(_max(cells), last) for cells, last in _columns(matrix, matrix))


def bwt(matrix: Matrix) -> Cell:
    """Return backward transfer: mean over j < T-1 of (a[T-1][j] - a[j][j]), which is minus `forgetting`.

    Lopez-Paz and Ranzato (2017).
    """
    _check(matrix)
    return _mean(_minus(matrix[-1][j], matrix[j][j]) for j in range(len(matrix) - 1))


def fwt(matrix: Matrix, untrained: Sequence[Cell]) -> Cell:
    """Return forward transfer: mean over j >= 1 of (a[j-1][j] - untrained[j]); Lopez-Paz and Ranzato (2017).

    Args:
        matrix: results with zero-shot cells, at least those directly above the diagonal.
        untrained: the metric of each task before any training (their random initialization).
    """
    _check(matrix, untrained)
    return _mean(_minus(matrix[j - 1][j], untrained[j]) for j in range(1, len(matrix)))


def transfer(matrix: Matrix, one: Sequence[Cell]) -> Cell:
    """Return the mean over j >= 1 of (a[j][j] - one[j]): the gain of a task from the tasks before it.

    Args:
        matrix: the results.
        one: the metric of each task learned alone.
    """
    _check(matrix, one)
    return _mean(_minus(matrix[j][j], one[j]) for j in range(1, len(matrix)))


def gap(matrix: Matrix, reference: Sequence[Cell]) -> Cell:
    """Return `average` minus the mean of reference[j] over j: each task alone (ONE) or all tasks at once (MTL)."""
    _check(matrix, reference)
    return _minus(average(matrix), _mean(reference))


def by_family(matrix: Matrix, families: Sequence[str]) -> dict[str, dict[str, Cell]]:
    """Return `average`, `learning` and `forgetting` over the tasks of each family, in order of first appearance.

    Families have metrics of different scales (F1, ROUGE, BLEU), so these complement the mean over all tasks. The last
    task of the whole sequence is excluded from forgetting, whatever its family.
    """
    _check(matrix, families)
    result: dict[str, dict[str, Cell]] = {}
    for family in dict.fromkeys(families):
        tasks = [j for j, name in enumerate(families) if name == family]
        earlier = [j for j in tasks if j < len(matrix) - 1]
        result[family] = {
            "average": _mean(matrix[-1][j] for j in tasks),
            "learning": _mean(matrix[j][j] for j in tasks),
            "forgetting": _mean(_minus(matrix[j][j], matrix[-1][j]) for j in earlier),
        }
    return result


def summary(
    matrix: Matrix,
    one: Sequence[Cell] | None = None,
    *,
    mtl: Sequence[Cell] | None = None,
    untrained: Sequence[Cell] | None = None,
    families: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return all metrics by name, None if a metric is undefined or lacks a measurement; JSON-serializable.

    Args:
        matrix: the results so far; rows of future tasks may be all None.
        one: each task learned alone, for "transfer" and "gap_one".
        mtl: each task learned with all others at once, for "gap_mtl".
        untrained: each task before any learning, for "fwt".
        families: each task's family; adds "families", the result of `by_family`.
    """
    result: dict[str, Any] = {
        "average": average(matrix),
        "learning": learning(matrix),
        "forgetting": forgetting(matrix),
        "forgetting_chaudhry": forgetting_chaudhry(matrix),
        "forgetting_max": forgetting_max(matrix),
        "bwt": bwt(matrix),
        "fwt": None if untrained is None else fwt(matrix, untrained),
        "transfer": None if one is None else transfer(matrix, one),
        "gap_one": None if one is None else gap(matrix, one),
        "gap_mtl": None if mtl is None else gap(matrix, mtl),
    }
    if families is not None:
        result["families"] = by_family(matrix, families)
    return result


def _check(matrix: Matrix, per_task: Sequence[object] | None = None) -> None:
    tasks = len(matrix)
    for i, row in enumerate(matrix):
        if len(row) != tasks:
            raise ValueError(f"the matrix must be square: row {i} has {len(row)} cells, there are {tasks} rows")
    if per_task is not None and len(per_task) != tasks:
        raise ValueError(f"one value per task is needed: {len(per_task)} values for {tasks} tasks")


def _diagonal(matrix: Matrix) -> list[Cell]:
    return [matrix[j][j] for j in range(len(matrix))]


def _minus(a: Cell, b: Cell) -> Cell:
    return None if a is None or b is None else a - b


def _max(cells: Iterable[Cell]) -> Cell:
    """Return the largest measured cell, or None; rows before a task was learned are usually unmeasured."""
    return max([cell for cell in cells if cell is not None], default=None)


def _columns(matrix: Matrix, rows: Matrix) -> list[tuple[tuple[Cell, ...], Cell]]:
    """Return (cells in `rows`, cell in the last row of `matrix`) for each task except the last."""
    return list(zip(zip(*rows, strict=True), matrix[-1], strict=True))[:-1] if len(matrix) > 1 else []


def _mean(cells: Iterable[Cell]) -> Cell:
    values = list(cells)
    measured = [value for value in values if value is not None]
    return sum(measured) / len(values) if values and len(measured) == len(values) else None

"""When a sealed task's test score is measured again, and when it is taken over."""

from __future__ import annotations

from tss.run.sequence import run_sequence

from .conftest import events, read


def measured(folder):
    """(task, after) of every cell that was measured, not taken over."""
    cells = events(folder, "evaluated")
    return [(event["task"][:3], event["after"][:3]) for event in cells if event["measured"]]


def test_a_verified_task_is_measured_again_after_the_last_one(tiny_config, tmp_path):
    quick = run_sequence(tiny_config("reevaluate=last"), tmp_path / "quick")
    each = run_sequence(tiny_config(), tmp_path / "each")
    own, last = [("asc", "asc"), ("ner", "ner")], [("asc", "drg"), ("ner", "drg"), ("drg", "drg")]
    assert measured(quick.folder) == [*own, *last]
    assert measured(each.folder) == [own[0], ("asc", "ner"), own[1], *last]
    assert quick.metrics == each.metrics
    assert read(quick.folder) == read(each.folder)
    for path in sorted((quick.folder / "predictions").iterdir()):
        assert path.read_bytes() == (each.folder / "predictions" / path.name).read_bytes()


def test_what_can_forget_is_always_measured(tiny_config, tmp_path):
    result = run_sequence(tiny_config("method=ncl"), tmp_path / "ncl")
    assert len(measured(result.folder)) == 6

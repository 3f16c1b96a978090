"""Run every case as a test: it fails if any competitor's check fails, and shows the times of those that passed."""

from __future__ import annotations

from typing import Any

import pytest

from bench.core.measure import DeviceLost, measure_case


def test_case(planned: Any, session: Any, results: Any, request: pytest.FixtureRequest) -> None:
    if results.time_is_up:
        results.skip_and_note(planned, "the time was up")
    try:
        measured = measure_case(planned.case, session.timer, session.seconds_for(planned.group))
    except DeviceLost as error:
        request.session.shouldstop = str(error)
        results.note_failure(planned, str(error))
        raise
    failures = results.add(planned, measured, session.ceilings)
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
    if not measured.timed:
        results.skip_and_note(planned, "; ".join(dict.fromkeys(str(one.skipped) for one in measured.competitors)))

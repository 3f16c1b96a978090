"""Every variant of every case as a test: it fails if its check fails, and has a time otherwise."""

from __future__ import annotations

from typing import Any

import pytest


def test_measured(measured: Any, session: Any, request: pytest.FixtureRequest, benchmark: Any) -> None:
    items: list[Any] = request.session.items
    all_measured = [item.callspec.params["measured"] for item in items if hasattr(item, "callspec")]
    names = [one.variant for one in all_measured if one.case is measured.case]  # those that were not deselected
    found = session.measure(measured.group, measured.case, names)
    record = found.records[measured.variant]
    if "skipped" in record:
        pytest.skip(record["skipped"])
    if "failed" in record:
        pytest.fail(f"{measured.case}, {measured.variant}: {record['failed']}", pytrace=False)
    seconds = [time / 1e6 for time in found.times[measured.variant].each]
    measured.clock.load(seconds)
    benchmark.extra_info |= record
    benchmark.pedantic(lambda: None, rounds=len(seconds), iterations=1)

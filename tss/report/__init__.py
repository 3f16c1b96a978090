"""One self-contained HTML page, plots and tables from finished or unfinished run folders."""

from __future__ import annotations

from tss.report.build import Report, build

__all__ = ["Report", "build"]

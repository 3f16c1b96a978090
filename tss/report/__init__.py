"""Reports of finished or unfinished run folders: one self-contained HTML page, plots and tables."""

from __future__ import annotations

from tss.report.build import Report, build

__all__ = ["Report", "build"]

#!/usr/bin/env python3
"""Draw the figure of scores against bytes of docs/comparison.md from its table of runs.

python scripts/comparison_bytes.py --out docs/images/comparison-bytes.svg
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

from tss.report.style import drawing
from tss.study.figures import Point, bytes_picture
from tss.study.results import spread

RUNS = Path(__file__).parents[1] / "docs" / "comparison" / "runs.csv"


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with RUNS.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    points = []
    for index, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        of_method = [row for row in rows if row["method"] == method]
        score = spread(float(row["average"]) for row in of_method)
        kept = statistics.fmean(float(row["total_bytes"]) for row in of_method)
        if score is not None:
            points.append(Point(method, index, kept, score))
    with drawing():
        drawn = bytes_picture(points)
    if drawn is not None:
        out.write_text(drawn.svg)


if __name__ == "__main__":
    main()

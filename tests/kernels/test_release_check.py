"""The check of a release notices what does not compile, fit or stay in registers; it runs once a release itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.kernels.inspectors import odd_launches
from tests.kernels.inspectors.release_check import CHECKED, KNOWN, LIMITS, ROOT, WITHOUT_TABLE, judge

BAD = Path(__file__).with_name("bad_launches.py")
PROGRAM = """
from pathlib import Path
from tests.kernels.inspectors.release_check import problems_of_triton
count, problems = problems_of_triton([120], [Path({file!r})])
print(count, *problems, sep="\\n")
"""


def test_problems_of_an_architecture_without_a_table():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PROGRAM.format(file=str(BAD))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, *problems = done.stdout.splitlines()
    assert int(count) == 7
    assert len(problems) == 2, problems
    assert problems[0].startswith("sm_120 good_kernel, too many stages for shared memory: shared memory ")
    assert problems[1].startswith("sm_120 spilling_kernel, spills: registers spill: ")


def test_what_is_known_is_no_problem_until_it_is_gone():
    problems = ["sm_89 one_kernel, 1 x 1: registers spill: 8 bytes", "sm_89 two_kernel, 1 x 1: does not compile: x"]
    assert judge(problems, ["sm_89 one_kernel, 1 x 1"]) == problems[1:]
    assert judge(problems, [text[:20] for text in problems]) == []
    assert judge([], ["sm_89 one_kernel"]) == ["sm_89 one_kernel: is known and no longer so: take it out of KNOWN"]


def test_every_architecture_has_a_limit():
    assert set(WITHOUT_TABLE) <= set(CHECKED) <= set(LIMITS)
    assert all(start.startswith(tuple(f"sm_{number} " for number in CHECKED)) for start in KNOWN)


def test_odd_launches_have_sizes_of_one_strides_of_zero_and_offsets_past_31_bits():
    strides = {layout: of(64) for layout, of in odd_launches.LAYOUTS.items()}
    assert (0, 0) in strides.values()
    assert max(row for row, _ in strides.values()) > 2**31
    assert {1, 64} <= {size for sizes in odd_launches.SIZES for size in sizes}

"""What the kernels for the CPU execute, counted by valgrind: against the table, and against what needs no table."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from csrc.build.toolchain import Missing, find_cxx
from csrc.build.variants import ROOT, built, read
from tests.kernels.inspectors import instruction_counts
from tests.kernels.inspectors.instruction_counts import EVENTS, MARGIN, Count, beyond_margin, measure, rows_of
from tests.kernels.inspectors.resource_table import from_text

TABLES = Path(__file__).with_name("resources")
AGAIN = "`make counts` writes the table again"
# Registers of twice the width should halve the count; a fifth more is left for what does not grow with them. Not so
# where a byte of gates is looked up in a table, and where 16-bit numbers are chosen one by one.
WIDER = 0.6
NOT_WIDER = {("unpack", "rows of whole bytes"), ("unpack", "rows end within a byte"), ("accumulate", "bfloat16")}
# Stores for eight float32 elements with AVX2: one for each result, and for the gates as bytes.
STORES = {
    ("pack", "float32"): 1,
    ("pack", "bfloat16"): 1,
    ("unpack", "rows of whole bytes"): 1,
    ("mask_by_scores", "float32"): 2,
    ("mask_by_bits", "float32"): 1,
    ("scores_grad", "weight float32"): 1,
    ("scores_grad", "weight float32, soft mask"): 1,
    ("adamw", "no soft mask"): 3,
    ("adamw", "gradient site"): 3,
    ("adamw", "update site"): 3,
    ("accumulate", "float32"): 1,
}
BESIDE = 0.5  # for eight elements, what a call and its blocks of 1,024 elements store beside them


@pytest.fixture(scope="module")
def program() -> Path:
    if (why := instruction_counts.obstacle()) is not None:
        pytest.skip(why)
    if isinstance(cxx := find_cxx(read()), Missing):
        pytest.skip(f"{cxx.reason}: {cxx.remedy}")
    return built("native-counted", ROOT / "build")


@pytest.fixture(scope="module")
def measured(program) -> tuple[str, list[Count]]:
    return measure(program)


@pytest.fixture(scope="module")
def each(measured) -> dict[tuple[str, ...], dict[str, float]]:
    """The longest calls' numbers by an element, by instruction set, kernel and launch."""
    return {key: {event: float(row[event]) for event in EVENTS} for key, row in rows_of(measured[1]).items()}


def test_a_second_run_counts_the_same(program, measured):
    assert measure(program) == measured


def test_nothing_executes_more_than_the_table_says(measured):
    compiler, counts = measured
    path = TABLES / f"callgrind-{compiler}.md"
    if not path.exists():
        known = ", ".join(sorted(file.stem.removeprefix("callgrind-") for file in TABLES.glob("callgrind-*.md")))
        pytest.skip(f"no table of {compiler}, only of {known}: `make counts` adds it")
    old, new = from_text(path.read_text()), rows_of(counts)
    here = {key[0] for key in new}
    missing = [key for key in old if key not in new and key[0] in here] + [key for key in new if key not in old]
    assert not missing, f"{path.name} and csrc/counting have other launches; {AGAIN}: {missing}"
    grew, fell = beyond_margin(old, new)
    assert not grew, "\n".join([f"more than {MARGIN:.0%} above {path.name}; if that is meant, {AGAIN}", *grew])
    if fell:
        warnings.warn("\n".join([f"less than {path.name} says: {AGAIN}, which keeps the gain", *fell]), stacklevel=1)


def test_no_call_grows_faster_than_its_size(measured):
    """What a call takes beside its elements is spread over more of them."""
    counts = {count[:4]: count for count in measured[1]}
    rows = sorted({count.rows for count in measured[1]})
    assert len(rows) == 2
    for key, few in counts.items():
        if key[3] == rows[0]:
            many = counts[*key[:3], rows[1]]
            for event in EVENTS:
                assert many.each(event) <= few.each(event), f"{key[:3]}: {event}"


def test_wider_registers_execute_less(each):
    if "avx2" not in {key[0] for key in each}:
        pytest.skip("this processor does not run AVX2")
    for (name, *launch), counts in each.items():
        if name == "avx2":
            share = counts["instructions"] / each["portable", *launch]["instructions"]
            assert share <= (1 if tuple(launch) in NOT_WIDER else WIDER), f"{launch}: {share:.3f} of the portable ones"


def test_every_result_is_stored_once(each):
    if "avx2" not in {key[0] for key in each}:
        pytest.skip("this processor does not run AVX2")
    for launch, stores in STORES.items():
        executed = 8 * each["avx2", *launch]["stores"]
        assert stores <= executed < stores + BESIDE, f"{launch}: {executed:.2f} for eight elements"


def test_one_pass_costs_no_more_than_two(each):
    """Gates within another kernel are not dearer than a call that packs them by itself."""
    for name in {key[0] for key in each}:
        pack = each[name, "pack", "float32"]["instructions"]
        for dtype in ("float32", "bfloat16"):
            apart = pack + each[name, "mask_by_bits", dtype]["instructions"]
            assert each[name, "mask_by_scores", dtype]["instructions"] <= apart


def test_growth_beyond_the_margin_is_said_with_both_numbers():
    def row(instructions: float) -> dict[str, str]:
        return {"instructions": f"{instructions:.3f}", "loads": "0.500", "stores": "0.125"}

    key = ("avx2", "pack", "float32")
    assert beyond_margin({key: row(1.0)}, {key: row(1.0 + MARGIN)}) == ([], [])
    grew, fell = beyond_margin({key: row(1.0)}, {key: row(1.021)})
    assert (grew, fell) == (["avx2 pack (float32): instructions by an element 1.000 -> 1.021"], [])
    grew, fell = beyond_margin({key: row(1.0)}, {key: row(0.9)})
    assert (grew, fell) == ([], ["avx2 pack (float32): instructions by an element 1.000 -> 0.900"])


def test_what_cannot_be_counted_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(instruction_counts.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(instruction_counts.sys, "platform", "linux")
    assert "install the package valgrind" in str(instruction_counts.obstacle())
    monkeypatch.setattr(instruction_counts.platform, "machine", lambda: "aarch64")
    assert "aarch64" in str(instruction_counts.obstacle())

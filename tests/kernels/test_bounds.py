"""The predicted bounds: what they count with, what they say, and that preferences and crossovers follow them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.kernels.inspectors.resource_table import from_text
from tests.kernels.inspectors.resources import programs_of
from tss_kernels import explain
from tss_kernels.backends import bounds, counts, preferences
from tss_kernels.backends.bounds import SM_90, Prediction
from tss_kernels.backends.predictions import VENDOR, predicted
from tss_kernels.backends.preferences import LINES, MANY, SIZES, Line
from tss_kernels.backends.tables import materialises, sm_90
from tss_kernels.backends.tables.cuda import with_crossovers
from tss_kernels.backends.tile_choice import SURE, predict

RESOURCES = Path(__file__).parent / "resources"
ROOT = Path(__file__).parents[2]
LOOPS = from_text((RESOURCES / "nvcc-13.0-loops.md").read_text())
NVCC = from_text((RESOURCES / "nvcc-13.0.md").read_text())
TRITON = from_text((RESOURCES / "triton-3.9.0.md").read_text())
GRID = tuple(2**power for power in range(5, 17))
CUDA, BFLOAT16 = torch.device("cuda"), torch.bfloat16


@pytest.mark.parametrize("one", counts.CUDA_PRODUCTS, ids=lambda one: one.launch)
def test_loops_of_cuda_products_are_those_of_the_table(one):
    assert one.loop == int(LOOPS["sm_90a", "gated_product", one.launch]["executed"])


@pytest.mark.parametrize("one", counts.CUDA_ADAPTER, ids=lambda one: one.launch)
def test_loops_of_the_cuda_adapter_are_those_of_the_table(one):
    found = [LOOPS["sm_90a", "gated_adapter", f"{one.launch}, product {number}"] for number in (1, 2)]
    assert one.loop == sum(int(line["executed"]) for line in found)


@pytest.mark.parametrize("one", [*counts.CUDA_PRODUCTS, *counts.CUDA_ADAPTER], ids=lambda one: one.launch)
def test_cuda_blocks_of_a_multiprocessor(one):
    adapter = "Adapter" in one.launch
    kernel = "gated_adapter_kernel" if adapter else "gated_product_kernel"
    launch = (
        one.launch.replace("bfloat16, Adapter", "bfloat16, bfloat16, Adapter") if adapter else f"bfloat16, {one.launch}"
    )
    line = NVCC["sm_90a", kernel, launch]
    stages = int(re.findall(r"\d+", one.launch.partition(">")[0])[-1])
    shared = stages * ((one.features + one.rows) * 128 + 8 * one.features) + (128 * one.rows if adapter else 0)
    assert one.resident == programs_of(90, one.warps, int(line["registers"]), shared)


def _triton_lines() -> list[tuple[str, counts.Counts]]:
    products = [("forward_kernel", one) for one in (*counts.TRITON_NARROW, *counts.TRITON_WIDE)]
    short = [("short_kernel", one) for one in counts.TRITON_SHORT if one.launch]
    return [*products, *short, *(("adapter_forward_kernel", one) for one in counts.TRITON_ADAPTER)]


@pytest.mark.parametrize(("kernel", "one"), _triton_lines(), ids=str)
def test_triton_counts_are_of_launches_in_the_table(kernel, one):
    line = TRITON["sm_90", kernel, one.launch]
    assert (one.warps, one.resident) == (int(line["warps"]), int(line["programs"]))
    assert f"ROWS={one.rows}" in line["constants"].split()


def test_bounds_by_hand():
    """1,024 programs of 128 x 128 over 1,024 features: eight on the fullest of 132 multiprocessors."""
    found = predict(SM_90, "packed_linear", "cuda", (16384, 1024, 1024))
    assert found is not None
    cycles = {
        "issue": 8 * (521 + 16 * 164) * 8 / 4,
        "port": 8 * (65536 + 16 * (4 * 16384 + 16384 + 2 * 1024)) / 128,
        "tensor": 8 * 16 * 512,
    }
    for name, count in cycles.items():
        assert found.bounds[name] == pytest.approx(count / 1.755e9)
    assert found.bounds["L2"] == pytest.approx((1024 * 16 * (2 * 16384 + 1024) + 2 * 16384 * 1024) / 7e12)
    moved = 4 * 16384 * 1024 + (2 * 8 + 1) * 1024 * 128
    assert found.bounds["memory"] == pytest.approx(moved / 4.3e12)
    assert (found.binding, found.launches) == ("L2", 1)
    assert found.seconds == pytest.approx(found.bounds["L2"] + 1e-6)


def test_scores_cost_their_bytes_and_beyond_few_rows_a_launch():
    for kernel, launches in (("triton", (0, 1)), ("cuda", (0, 1)), ("vendor", (0, 0))):
        for rows, wanted in zip((128, 129), launches, strict=True):
            packed, scores = (predict(SM_90, op, kernel, (rows, 1024, 64)) for op in ("packed_linear", "gated_linear"))
            assert packed is not None
            assert scores is not None
            assert scores.launches - packed.launches == wanted
            assert scores.bounds["L2"] - packed.bounds["L2"] == pytest.approx(4 * 1024 * 64 / 4.3e12)


def test_what_was_not_counted_is_not_predicted():
    for op, shape in (
        ("pack_gates", (64, 1024)),
        ("packed_linear", (512, 1000, 64)),
        ("gated_adapter", (512, 1024, 128)),
        ("packed_linear", (0, 1024, 64)),
    ):
        assert predict(SM_90, op, "triton", shape) is None
    assert predict(SM_90, "gated_adapter", "vendor", (512, 1024, 64)) is None
    for architecture in ("sm_80", "sm_86", "sm_100", "cpu"):
        assert predicted("packed_linear", architecture, BFLOAT16, (512, 1024, 64)) == (
            None, f"no counts for {architecture}"
        )  # fmt: skip
    assert predicted("packed_linear", "sm_90", torch.float32, (512, 1024, 64))[0] is None
    assert predicted("gated_adapter", "sm_90", BFLOAT16, (512, 1024, 128))[0] is None


def test_a_prediction_says_what_binds():
    times, note = predicted("packed_linear", "sm_90", BFLOAT16, (4096, 1024, 1024))
    assert times is not None
    assert set(times) == {"triton", "cuda", VENDOR}
    assert times["triton"] == times["cuda"] == times[VENDOR], "both tables take the vendor's product"
    assert str(times[VENDOR]) == "14.3 us, bound by port"
    assert "not measured" in note


def test_the_table_of_predictions_has_the_models_numbers():
    text = (ROOT / "docs" / "gpu.md").read_text()
    line = r"^\| `(\w+)` (\d+) -> (\d+) \| ([\d,]+) \| (\w+) \| ([\d.]+) \| ([\d.]+) \| (\w+) \|$"
    found = re.findall(line, text, flags=re.MULTILINE)
    assert len(found) == 16
    for op, first, second, rows, backend, least, most, bound in found:
        shape = int(rows.replace(",", "")), int(first), int(second)
        assert preferences.preferences(op, CUDA, BFLOAT16, shape)[0].backend == backend
        one = (predicted(op, "sm_90", BFLOAT16, shape)[0] or {})[backend]
        assert (one.seconds * 1e6, one.slow * 1e6) == pytest.approx((float(least), float(most)), abs=0.06)
        assert one.binding == bound


def test_a_slow_prediction_by_hand():
    one = Prediction({"issue": 2e-6, "port": 1e-6, "tensor": 1e-6, "L2": 2e-6, "memory": 1e-6}, 2)
    assert one.expected == pytest.approx((1.3 * 2 + 2) * 1e-6)
    assert one.slow == pytest.approx((1.6 * 2 + 4) * 1e-6)
    assert one._replace(bounds=one.bounds | {"L2": 3e-6}).slow == pytest.approx((1.4 * 3 + 4) * 1e-6)
    # The vendor's share of the rates has 1.3 times in it.
    vendor = one._replace(on_top=1.0, bounds=one.bounds | {"issue": 4e-6})
    assert (vendor.expected, vendor.slow) == pytest.approx((6e-6, (1.6 / 1.3 * 4 + 4) * 1e-6))


def test_explain_shows_predictions_beside_the_bytes():
    x, weight, packed = (torch.empty((), dtype=dtype) for dtype in (BFLOAT16, BFLOAT16, torch.uint8))
    arguments = x.expand(512, 1024), weight.expand(64, 1024), packed.expand(64, 128)
    told = explain("packed_linear", *arguments)
    assert told.predicted is None
    assert "  predicted: no time (no counts for cpu)" in str(told)
    times, note = predicted("packed_linear", "sm_90", BFLOAT16, (512, 1024, 64))
    shown = str(replace(told, predicted=times, predicted_note=note))
    assert "  predicted: triton 3.4 us, bound by issue; cuda 2.8 us, bound by L2; " in shown


def rank(one: Prediction) -> tuple[float, ...]:
    """By the time; what memory or L2 binds alike, by the next bounds, which leave less to hide."""
    return one.seconds, one.on_chip, max(one.bounds[name] for name in bounds.INSIDE)


def times_of(op: str, line: Line, rows: int) -> dict[str, Prediction]:
    found, _ = predicted(op, "sm_90", BFLOAT16, (rows, *SIZES[line.shapes]))
    assert found is not None
    return found


def first_row_of(line: Line) -> int:
    """The first row past the line before."""
    before = [
        other.rows for other in LINES
        if other.shapes == line.shapes and other.operations == line.operations and other.rows < line.rows
    ]  # fmt: skip
    return max(before, default=0) + 1


def _name(value: str | Line) -> str:
    return value if isinstance(value, str) else f"{value.shapes}-{value.rows}"


PREDICTED = [line for line in LINES if line.shapes in SIZES and not line.basis.startswith("measured")]
OF_EACH = [(op, line) for line in PREDICTED for op in line.operations]


@pytest.mark.parametrize(("op", "line"), OF_EACH, ids=_name)
def test_the_model_ranks_as_a_predicted_line_says(op, line):
    """At powers of two and the line's end the preferred one is first, and anywhere else within what is known."""
    first = first_row_of(line)
    asked = {rows for rows in (*GRID, line.rows) if first <= rows <= line.rows and rows < MANY}
    assert asked
    for rows in sorted(asked):
        times = times_of(op, line, rows)
        ranks = [rank(times[name]) for name in line.backends]
        assert ranks == sorted(ranks), f"{rows} rows: {times}"
    for rows in range(first, min(line.rows, 65536) + 1, 112):
        wanted, other = (times_of(op, line, rows)[name].seconds for name in line.backends)
        assert wanted <= SURE * other, f"{rows} rows: {wanted} against {other}"


@pytest.mark.parametrize("line", PREDICTED, ids=_name)
def test_a_basis_has_the_models_numbers(line):
    said = re.match(r"predicted: ([\d.]+) against ([\d.]+) us at ([\d,]+) rows", line.basis)
    assert said is not None
    rows = int(said[3].replace(",", ""))
    assert first_row_of(line) <= rows <= line.rows
    op = "gated_adapter" if line.shapes == "adapter" else "packed_linear"
    times = times_of(op, line, rows)
    for name, number in zip(line.backends, (said[1], said[2]), strict=True):
        assert times[name].seconds * 1e6 == pytest.approx(float(number), abs=0.06)


def test_crossovers_follow_the_model():
    """Fused while it is within what is known of the vendor's route, which costs a second launch from Python; beyond,
    the vendor's route where it is faster."""
    tables, found = {"triton": sm_90.TABLE, "cuda": with_crossovers("sm_90")}, set()
    for kernel, table in tables.items():
        for name in ("down", "up", "wide"):
            for rows in GRID:
                shape = (rows, *SIZES[name])
                one, vendor = (
                    predict(SM_90, "packed_linear", kernel, shape),
                    predict(SM_90, "packed_linear", "vendor", shape),
                )
                assert one is not None
                assert vendor is not None
                chosen = materialises(table, "forward", BFLOAT16, *shape, aligned=True)[0]
                if one.expected > SURE * vendor.expected if not chosen else vendor.expected > one.expected:
                    found.add((kernel, name, rows))
    assert not found


def test_the_basis_of_a_crossover_has_the_models_numbers():
    for kernel, table in (("triton", sm_90.TABLE), ("cuda", with_crossovers("sm_90"))):
        end = table.crossovers["forward", "half", True, "arithmetic"]
        said = [float(number) for number in re.findall(r"(\d+\.\d)", end.basis)]
        rows = (int(end.rows), 2 * int(end.rows))
        found = [
            one.seconds * 1e6 for asked in rows for name in (kernel, "vendor")
            if (one := predict(SM_90, "packed_linear", name, (asked, 1024, 1024))) is not None
        ]  # fmt: skip
        assert said == pytest.approx(found, abs=0.06)
        assert all(f"{number:,}" in end.basis for number in rows)


def test_preferences_follow_the_shape():
    def first(op: str, *shape: int, dtype: torch.dtype = BFLOAT16) -> str:
        return preferences.preferences(op, CUDA, dtype, shape)[0].backend

    down = [first("packed_linear", rows, 1024, 64) for rows in (1, 1024, 1025, 5888, 5889, MANY)]
    assert down == [name for name in ("cuda", "triton", "cuda") for _ in range(2)]
    assert [first("gated_linear", rows, 64, 1024) for rows in (1024, 1025)] == ["cuda", "triton"]
    assert [first("gated_linear", rows, 1024, 1024) for rows in (1, MANY)] == ["cuda", "cuda"]
    assert [first("gated_adapter", rows, 1024, 64) for rows in (512, 9472, 9473, MANY)] == ["triton"] * 2 + ["cuda"] * 2
    assert first("gated_linear", 64, 64, 1024, dtype=torch.float32) == "triton"
    assert first("gated_linear", 64, 50, 1024) == "triton"
    assert first("gated_adapter", 8192, 1024, 128) == "triton"
    assert preferences.preferences("gated_linear", CUDA, BFLOAT16) == preferences.CUDA["gated_linear", "any"][0][1]
    for op, shapes in preferences.CUDA:
        ends = [rows for rows, _ in preferences.CUDA[op, shapes]]
        assert ends == sorted(set(ends)), "rows rise"
        assert ends[-1] == MANY

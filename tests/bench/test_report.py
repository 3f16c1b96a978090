"""What readers get of a result file: one table, one figure, one comparison; and that the committed ones agree."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from bench.report import documents
from bench.report.__main__ import main
from bench.report.documents import differing, figure_of, filled, update
from bench.report.figure import draw, label
from bench.report.results import Unreadable, load
from bench.report.tables import cases_table, headlines, summary_table, tables, targets_table


def entry(group: str, operation: str, shape: dict[str, int], name: str, us: float, ratio: float | None = None,
          **more: Any) -> dict[str, Any]:  # fmt: skip
    """A competitor of a case as pytest-benchmark's file has it."""
    title = " ".join([f"{group}: {operation}", *(f"{key}={size}" for key, size in shape.items()), "float32"])
    role = "ours" if name.startswith("tss") else "floor" if name in ("ungated", "AdamW fused, no mask") else "rival"
    info = {
        "operation": operation, "shape": shape, "dtype": "float32", "variant": name, "role": role, "backend": None,
        "threads": 2, "checked": "not checked: it computes less" if role == "floor" else "float64",
        "percentiles_us": [0.9 * us, 1.2 * us], "host_us": us, "peak_bytes": None, "spread": 0.3, "busy": None,
        "group": group, **more,
    }  # fmt: skip
    if ratio is not None:
        info["ratio"] = {"median": ratio, "low": 0.9 * ratio, "high": 1.1 * ratio}
    else:
        info["roofline_share"] = 0.42
    seconds = us / 1e6
    stats = {"median": seconds, "min": seconds, "max": seconds, "mean": seconds, "stddev": 0.0, "rounds": 20,
             "iterations": 1, "outliers": "0;0", "iqr": 0.0, "ops": 1 / seconds}  # fmt: skip
    return {"group": title, "name": name, "fullname": f"{title}: {name}", "extra_info": info, "stats": stats,
            "params": None, "param": None}  # fmt: skip


def case(group: str, operation: str, shape: dict[str, int], us: float, ratios: dict[str, float], **more: Any) -> list:
    ours = entry(group, operation, shape, "tss", us, **more)
    return [ours, *(entry(group, operation, shape, name, us * ratio, ratio) for name, ratio in ratios.items())]


def content() -> dict[str, Any]:
    """A file with two layers, one of them measured beside other work, and an optimizer."""
    layer, adamw = "layer forward+backward", "soft_masked_adamw_ update, 3 M scores"
    busy = {"busy": "others used 1.1 of 2 cores", "load": {"average": 3.1, "others": 1.1}}
    benchmarks = [
        *case("layers", layer, {"rows": 512, "in": 64}, 1000.0, {"ungated": 0.8, "eager": 1.0, "tss, reference": 1.5}),
        *case("layers", layer, {"rows": 2048, "in": 64}, 4000.0, {"ungated": 1.25, "eager": 1.44}, **busy),
        *case("adamw", adamw, {"tensors": 48}, 5000.0, {"AdamW fused + multiply": 2.0, "AdamW fused, no mask": 0.9}),
    ]
    machine = {
        "processor": "Test Processor", "device": "cpu", "threads": 2, "cpus": 2, "python": "3.11.4", "gpus": [],
        "packages": {"torch": "2.13.0", "triton": None},
    }  # fmt: skip
    return {
        "benchmarks": benchmarks, "machine_info": {"tss": machine}, "datetime": "2026-01-31T10:00:00",
        "commit_info": {"id": "0123456789abcdef", "dirty": False}, "version": "5.0.0",
        "tss": {"tiny": False, "ceilings": None, "skipped": [], "failed": ["layers: x: eager: y: over the bound"]},
    }  # fmt: skip


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "cpu.json"
    file.write_text(json.dumps(content()))
    return file


def test_the_summary_is_the_geometric_mean_and_the_range_of_the_cases(path):
    text = summary_table(headlines(load(path)))
    assert (
        "| layer forward+backward (*busy*: 1) | 2 | ungated **1.00 (0.80-1.25)** | eager **1.20 (1.00-1.44)** |" in text
    )
    assert "| soft_masked_adamw_ update | 1 | AdamW fused, no mask **0.90** | AdamW fused + multiply **2.00** |" in text
    assert "reference" not in text  # another one of ours is neither floor nor rival


def test_a_busy_machine_is_named_and_its_numbers_are_marked(path):
    results = load(path)
    assert results.busy().startswith("**Busy machine**: 1 of 3 cases are marked *busy*")
    assert "up to 1.1 of 2 cores" in results.busy()
    (marked,) = [line for line in cases_table(results.of(["layers"])).splitlines() if "*busy*" in line]
    assert "4.00 ms (3.60-4.80) *busy*" in marked


def test_every_case_has_a_line_with_all_its_competitors(path):
    lines = tables(load(path), ["layers"]).splitlines()
    head = next(line for line in lines if line.startswith("| operation"))
    assert [cell.strip() for cell in head.split("|")[6:-1]] == ["ungated", "eager", "tss, reference"]
    assert "| 1.00 ms (0.90-1.20) | 42% | 0.80 (0.72-0.88) | 1.00 (0.90-1.10) | 1.50 (1.35-1.65) |" in "\n".join(lines)
    assert any("- | - " not in line and line.endswith("| 1.25 (1.12-1.38) | 1.44 (1.30-1.58) | - |") for line in lines)


def test_a_failed_check_is_said(path):
    assert "Checks that FAILED, so that there is no time:\n\n- layers: x: eager: y: over the bound" in tables(
        load(path)
    )


def test_targets_say_in_how_many_cases_they_are_met(path):
    text = targets_table(load(path))
    assert "| ungated | 0.952 | partly: 1 of 2 | 0.8 (layer forward+backward, rows=512 in=64) |" in text
    assert "| AdamW fused + multiply | 1 | **met**: 1 of 1 | 2 (" in text
    assert "| adapters removed | 0.952 | not measured | - |" in text


def bars(svg: str) -> set[str]:
    return {text for text in re.findall(r'<g id="([^"]+)">', svg) if ": " in text}


def test_the_figure_holds_the_tables_numbers(path, tmp_path):
    results, file = load(path), tmp_path / "figure.svg"
    draw(results, file)
    text, table = file.read_text(), summary_table(headlines(results))
    assert bars(text) == {
        label(line, one) for line in headlines(results) for one in line.summaries if one.role != "ours"
    }  # fmt: skip
    assert "layer forward+backward: eager 1.20 (1.00-1.44)" in bars(text)
    for line in headlines(results):
        for one in (one for one in line.summaries if one.role != "ours"):
            assert f"{one.name} **{one.text}**" in table
    draw(results, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text


def test_one_command_writes_table_and_figure_and_a_changed_number_is_noticed(path, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    monkeypatch.setattr("bench.report.results.ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("Before.\n\n<!-- measured:headlines cpu.json -->\n<!-- /measured -->\nAfter.\n")
    newer = content()
    newer["benchmarks"][2]["extra_info"]["ratio"]["median"] = 1.21
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    update(load(path), [readme])
    assert differing([readme]) == []
    assert readme.read_text().startswith("Before.\n\n<!-- measured:headlines cpu.json -->\nTest Processor, 2 threads")
    assert "(docs/images/measured-cpu.svg)" in readme.read_text()
    update(load(tmp_path / "newer.json"), [readme])
    assert "measured:headlines newer.json" in readme.read_text()
    assert "eager **1.32 (1.21-1.44)**" in readme.read_text()
    assert differing([readme]) == []
    readme.write_text(readme.read_text().replace("eager **1.32", "eager **1.42"))
    assert differing([readme]) == [f"{readme}: its sections differ from their files"]
    update(load(tmp_path / "newer.json"), [readme])
    figure_of(load(path)).write_text(figure_of(load(path)).read_text().replace("eager 1.32", "eager 1.42"))
    assert [line.rpartition(": ")[2] for line in differing([readme])] == ["its bars are not the ratios of newer.json"]


def test_the_committed_documents_and_figure_agree_with_their_file():
    assert differing() == []
    names = {name for document in documents.DOCUMENTS for _, name, _ in documents.SECTION.findall(document.read_text())}
    assert len(names) == 1, "documents show different files"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "is not a result file"),
        ('{"benchmarks": [{"group": "x"}]}', "is not a result file"),
        ('{"benchmarks": []}', "is not a result file"),
    ],
)
def test_another_kind_of_file_is_refused_in_one_line(tmp_path, capsys, text, says):
    file = tmp_path / "other.json"
    file.write_text(text)
    assert main(["table", str(file)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "--benchmark-json" in said
    assert said.count("\n") == 1


def test_an_unknown_group_and_unpaired_markers_are_named(path, tmp_path):
    with pytest.raises(Unreadable, match=r"no group speed: it has layers, adamw"):
        load(path).of(["speed"])
    document = tmp_path / "page.md"
    document.write_text("<!-- measured:headlines a.json -->\nno end\n")
    with pytest.raises(Unreadable, match="markers come in pairs"):
        filled(document)


def test_a_comparison_needs_a_case_in_common(path, tmp_path, capfd):
    same = tmp_path / "same.json"
    same.write_text(path.read_text())
    assert main(["compare", str(path), str(same)]) == 0
    assert "soft_masked_adamw_" in capfd.readouterr().out
    other = content()
    for one in other["benchmarks"]:
        one["fullname"] = f"other {one['fullname']}"
    file = tmp_path / "other.json"
    file.write_text(json.dumps(other))
    assert main(["compare", str(path), str(file)]) == 2
    assert "no case in common" in capfd.readouterr().err

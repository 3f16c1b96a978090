"""The numbers in documents come out of result files, and whoever changes one of both is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.reading.__main__ import main
from bench.reading.documents import SELECTIONS, differing, fill, sections_of
from bench.reading.files import ROOT, load
from bench.reading.summaries import summary_table
from tests.bench.reading_samples import cases_of, content, written

TEMPLATE = """# Title
before
<!-- measured:summary -->
old numbers
<!-- /measured -->
between <!-- a comment -->
<!-- measured:table:adamw,step {file} --><!-- /measured -->
after
"""


@pytest.fixture
def document(tmp_path) -> Path:
    path = tmp_path / "README.md"
    path.write_text(TEMPLATE.format(file=written(tmp_path)))
    return path


def run(document: Path, *arguments: object) -> int:
    empty = document.with_name("other.md")
    empty.touch()
    return main(["document", *map(str, arguments), "--readme", str(document), "--docs", str(empty)])


def test_sections_are_filled_and_the_rest_stays(tmp_path, document, capsys):
    file = written(tmp_path)
    assert run(document, file, "--check") == 1
    said = capsys.readouterr().err
    assert f"{document}:3: summary" in said
    assert f"{document}:7: table:adamw,step" in said
    assert run(document, file) == 0
    text = document.read_text()
    filled = f"<!-- measured:summary -->\n{summary_table(load(file))}\n<!-- /measured -->"
    assert text.startswith(f"# Title\nbefore\n{filled}\nbetween <!-- a comment -->\n")
    assert text.endswith("\n<!-- /measured -->\nafter\n")
    assert "old numbers" not in text
    assert "3 M scores in 48 tensors" in text
    assert "training step, embedded" in text
    assert run(document, file, "--check") == 0
    assert run(document, file) == 0
    assert document.read_text() == text


@pytest.mark.parametrize("check", [[], ["--check"]])
def test_a_file_that_no_section_names_or_that_is_none_is_no_success(tmp_path, document, check, capsys):
    other = tmp_path / "other.md"
    other.write_text(f"<!-- measured:legend {written(tmp_path, name='own.json')} --><!-- /measured -->")
    nowhere, unnamed = tmp_path / "nowhere.json", written(tmp_path, name="unnamed.json")
    arguments = ["--readme", str(other), "--docs", str(other), *check]
    assert main(["document", str(nowhere), *arguments]) == 2
    assert "nowhere.json is no file" in capsys.readouterr().err
    assert main(["document", str(unnamed), *arguments]) == 1
    assert "no section names this file" in capsys.readouterr().err


def test_a_changed_number_is_found_on_either_side(tmp_path, document, capsys):
    file = written(tmp_path)
    run(document, file)
    text = document.read_text()
    document.write_text(text.replace("passed", "passed!", 1))
    assert differing([document], file) == [f"{document}:3: summary"]
    document.write_text(text)
    made = content()
    cases_of(made, "step")[0]["variants"]["tss"]["median_us"] *= 2
    written(tmp_path, made)
    (found,) = differing([document], file)
    assert "table:adamw,step" in found


def test_sections_of_another_file_are_left_alone(tmp_path, document, capsys):
    other = written(tmp_path, name="other-2026-02-02.json")
    fill([document], other)
    assert document.read_text().endswith(f"{written(tmp_path)} --><!-- /measured -->\nafter\n")
    document.write_text(document.read_text().replace("measured:summary", f"measured:summary {written(tmp_path)}"))
    assert run(document, other) == 1
    assert "no section names this file" in capsys.readouterr().err


def test_without_a_file_every_marker_has_to_name_its_own(tmp_path, document, capsys):
    assert run(document, "--check") == 2
    assert f"{document}:3: summary: the marker names no file" in capsys.readouterr().err
    document.write_text(document.read_text().replace("measured:summary", f"measured:summary {written(tmp_path)}"))
    assert run(document) == 0
    assert run(document, "--check") == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- measured:summary -->\n", "has no end"),
        ("<!-- measured:summary -->\n<!-- measured:summary -->\n<!-- /measured -->", "before it has no end"),
        ("<!-- /measured -->", "no beginning"),
        ("<!-- measured:nothing -->\n<!-- /measured -->", "no such selection: there are summary, table"),
        ("<!-- measured:table:nothing -->\n<!-- /measured -->", "no group nothing"),
        ("<!-- measured:table a b -->\n<!-- /measured -->", "is no marker"),
        ("<!--measured:table-->\n<!-- /measured -->", "is no marker"),
    ],
)
def test_where_a_marker_is_wrong_nothing_is_written(tmp_path, capsys, text, said):
    document = tmp_path / "README.md"
    whole = "<!-- measured:summary -->\n<!-- /measured -->\n" + text
    document.write_text(whole)
    assert run(document, written(tmp_path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(document) in line
    assert said in line
    assert document.read_text() == whole


@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_selection_gives_text(tmp_path, selection):
    document = tmp_path / "README.md"
    document.write_text(f"<!-- measured:{selection} -->\n<!-- /measured -->\n")
    file = written(tmp_path)
    fill([document], file)
    (section,) = sections_of(document)
    assert document.read_text()[section.start : section.end].strip()
    assert differing([document], file) == []


def test_the_committed_documents_say_what_the_committed_results_give():
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if not any(sections_of(document) for document in documents):
        pytest.skip("no document has a marker yet")
    assert differing(documents) == [], "run python -m bench.reading document"

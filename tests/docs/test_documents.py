"""README and docs say what is so: their Python runs, their commands parse, their links lead somewhere."""

from __future__ import annotations

import io
import json
import re
import shlex
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from tss.cli.main import build_parser
from tss.run.backbone import load_backbone

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]
HUB_MODELS = ("facebook/bart-base",)


def blocks(path, language):
    parser = PythonCodeBlockParser() if language == "python" else CodeBlockParser(language, lambda example: None)
    return list(Sybil([parser]).parse(path).examples())


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to run in, where names of models on the hub are folders of tiny models."""
    for name in HUB_MODELS:
        tokenizer = load_backbone("embedded").tokenizer
        tokenizer.save_pretrained(tmp_path / name)
        config = BartConfig(vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1,
                            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                            decoder_ffn_dim=32, max_position_embeddings=64)  # fmt: skip
        BartForConditionalGeneration(config).save_pretrained(tmp_path / name)
        assert AutoTokenizer.from_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", [name for name, path in zip(NAMES, DOCUMENTS, strict=True) if blocks(path, "python")])
def test_python_runs_from_top_to_bottom(name, elsewhere):
    for example in blocks(ROOT / name, "python"):
        example.evaluate()


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_understood(name):
    parser = build_parser()
    for example in blocks(ROOT / name, "bash"):
        for line in example.parsed.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["tss"]:
                complaint = io.StringIO()
                try:
                    with redirect_stderr(complaint):
                        parser.parse_args(words[1:])
                except SystemExit as stop:
                    pytest.fail(f"{name}: {line}: {complaint.getvalue()} ({stop.code})")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    path = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        where = (path.parent / file) if file else path
        assert where.exists(), f"{name} links to {target}, which is not there"
        if anchor:
            titles = re.findall(r"^#+ (.*)", where.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{name} links to {target}, which has no such heading"


def test_every_page_is_in_a_table_of_contents():
    tables = re.findall(
        r"```\{toctree\}\n(.*?)```", (ROOT / "docs" / "index.md").read_text(encoding="utf-8"), re.DOTALL
    )
    named = {line for table in tables for line in table.splitlines() if line and not line.startswith(":")}
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == pages - {"index"}


def test_the_notebook_is_the_quickstart():
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [example.parsed.strip("\n") for example in blocks(ROOT / "docs" / "quickstart.md", "python")]

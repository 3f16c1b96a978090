"""Two tiny tasks on the tiny backbone, and `tss` called in this process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.attack import scene
from tss.cli.main import main


@pytest.fixture(scope="session")
def cli_data(tmp_path_factory) -> Path:
    """A classification and an extraction task of twelve training examples each."""
    root = tmp_path_factory.mktemp("cli-data")
    scene.make_data(root)
    return root


@pytest.fixture(scope="session")
def tiny_options(tiny_backbone, cli_data) -> list[str]:
    """Words and options of a run of seconds."""
    return scene.tiny_options(tiny_backbone, cli_data)


@pytest.fixture
def tss(capsys):
    """`tss("run", …)` gives the exit code, standard output and standard error of a command line."""

    def call(*words) -> SimpleNamespace:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_options) -> Path:
    """A finished run of both tasks."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    assert main(["run", *tiny_options, "--out", str(folder), "--quiet"]) == 0
    return folder

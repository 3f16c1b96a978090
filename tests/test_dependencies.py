"""What the code imports is what pyproject.toml installs: a machine that has more than that hides a missing line."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MISSING = ("transformers", "pydantic", "datasets", "safetensors", "yaml", "rich", "sklearn", "matplotlib")
OURS = {"tss", "tss_kernels", "csrc", "bench", "tests", "scripts", "examples"}
# Modules that stand beside the script that imports them.
BESIDE = {path.stem for path in ROOT.glob("tests/**/*.py")} | {path.stem for path in ROOT.glob("scripts/*.py")}


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _declared(*extras: str) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = list(project["project"]["dependencies"])
    for extra in extras:
        lines += project["project"]["optional-dependencies"][extra]
    return {_normalized(re.match(r"[\w.-]+", line).group()) for line in lines}


def _imported(folder: str) -> dict[str, str]:
    """Top-level modules imported below ``folder``, in functions too, and one file that imports each."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.split(".")[0], str(path.relative_to(ROOT)))
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | OURS | BESIDE}


def _missing(folder: str, declared: set[str]) -> list[str]:
    distributions = packages_distributions()
    return [
        f"{path} imports {module}"
        for module, path in _imported(folder).items()
        if not declared & {_normalized(name) for name in distributions.get(module, [module])}
    ]


# accelerate, peft, ray, triton and wandb are optional in the packages: they are looked for before they are imported.
@pytest.mark.parametrize(("folder", "extras"), [("tss", ["train", "serve"]), ("tss_kernels", [])])
def test_packages_import_only_what_is_installed_with_them(folder, extras):
    optional = {"triton", "accelerate", "peft", "ray", "wandb", "setuptools", "pybind11", "ninja"}
    assert not _missing(folder, _declared(*extras) | optional)


@pytest.mark.parametrize("folder", ["tests", "bench", "scripts", "examples", "csrc"])
def test_what_development_imports_is_in_the_extra_dev(folder):
    assert not _missing(folder, _declared("train", "serve", "dev"))


@pytest.mark.parametrize(
    "statement", ["tss.attach", "tss.Classification", "from tss.cli.main import main; main(['presets'])"]
)
def test_without_the_training_layers_packages_the_kernels_work_and_the_rest_says_what_to_install(statement):
    program = f"""
import sys
import importlib.abc

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
import torch, tss, tss_kernels
tss_kernels.GatedAdapterLinear(8, 4)(torch.zeros(2, 8))
try:
    {statement}
except ImportError as error:
    print(error, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip install 'tss[train]'" in done.stderr

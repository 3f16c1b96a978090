"""Write the ninja file of a module and run ninja on it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csrc.build.plan import Module

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STATUS = "tss_kernels:"
"""Prefix of lines of progress."""


class BuildFailed(RuntimeError):
    """A module cannot be built; after a failed ninja run, the message ends with what it printed."""


def _escape(path: Path | str) -> str:
    """Escape a path for a build line of ninja."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _shell(words: tuple[str, ...] | list[str]) -> str:
    """Join the words of a command, quoted for the shell and then for ninja."""
    return " ".join(map(shlex.quote, words)).replace("$", "$$")


def suffix() -> str:
    """Return the suffix of extension module files for this Python."""
    return sysconfig.get_config_var("EXT_SUFFIX")


def file_name(module: Module) -> str:
    """Return the name of the file that linking a module writes."""
    return module.name if module.program else module.name + suffix()


def text(module: Module, compilers: dict[str, str], folder: Path) -> str:
    """Return the ninja file that builds a module in this folder; compilers: "cxx" and, where it is used, "nvcc"."""
    lines = [f"builddir = {_escape(folder)}", "ninja_required_version = 1.5"]
    for name, path in compilers.items():
        depend = "-MD -MF $out.d" if name == "cxx" else "-MD -MF $out.d -MT $out"
        lines += [
            f"rule {name}",
            f"  command = {_shell([path])} {depend} $flags -c $in -o $out",
            "  description = compiled $what",
            "  depfile = $out.d",
            "  deps = gcc",
        ]
    kind = "" if module.program else " -shared"
    lines += ["rule link", f"  command = {_shell([compilers['cxx']])}{kind} -o $out $in $flags"]
    lines += ["  description = linked $out"]
    objects = []
    for source in module.sources:
        objects.append(f"{source.object_name}.o")
        lines += [f"build {objects[-1]}: {source.compiler} {_escape(source.path)}", f"  flags = {_shell(source.flags)}"]
        lines += [f"  what = {str(source.object_name).replace('$', '$$')}"]
    lines += [f"build {file_name(module)}: link {' '.join(objects)}", f"  flags = {_shell(module.link)}", ""]
    return "\n".join(lines)


def _ninja() -> str:
    try:
        import ninja
    except ImportError:
        return "ninja"
    return str(Path(ninja.BIN_DIR) / "ninja")


def build(module: Module, compilers: dict[str, str], folder: Path, jobs: int, verbose: bool = False) -> Path:
    """Bring the module in the folder up to date and return its file. Raises BuildFailed."""
    folder.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder):
        return _build(module, compilers, folder, jobs, verbose)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make a second build of the same folder wait: parallel test processes build the same modules."""
    with (folder / "lock").open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(module: Module, compilers: dict[str, str], folder: Path, jobs: int, verbose: bool) -> Path:
    file = folder / f"{module.name}.ninja"
    content = text(module, compilers, folder)
    if not file.exists() or file.read_text() != content:
        file.write_text(content)
    command = [_ninja(), "-C", str(folder), "-f", file.name, "-j", str(jobs), *(["-v"] if verbose else [])]
    todo = sum(line.startswith(STATUS) for line in _Lines([*command, "-n"]))
    if todo:
        _tell(f"{STATUS} {module.name}: {todo} steps with {_compilers(module, compilers)}, {jobs} at a time")
    output = []
    for line in (lines := _Lines(command)):
        output.append(line)
        if line.startswith(STATUS):
            _tell(line)
        elif verbose:
            print(line)
    if lines.code != 0:
        told = "\n".join(line for line in output if not line.startswith(("ninja: Entering", STATUS)))
        raise BuildFailed(f"building {module.name} failed (exit {lines.code}):\n{told.strip()}")
    return folder / file_name(module)


def _compilers(module: Module, compilers: dict[str, str]) -> str:
    names = dict.fromkeys(source.compiler for source in module.sources)
    return " and ".join(Path(compilers[name]).name for name in names)


def _tell(line: str) -> None:
    """Print progress to standard error: other programs may read the standard output of a command."""
    print(line, file=sys.stderr, flush=True)


class _Lines:
    """Lines of a command's output, as they come; afterwards `code` is its exit code."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "NINJA_STATUS": f"{STATUS} [%f of %t, %e s] "}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
        )
        self.code = 0

    def __iter__(self) -> Iterator[str]:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            for line in stream:
                yield line.rstrip("\n")
        self.code = self._process.wait()

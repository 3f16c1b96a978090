"""Reads compiled CUDA kernels instruction by instruction: what they are for, and what a turn of a loop executes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from csrc.build.plan import CSRC, NVCC
from tests.kernels.inspectors.cuda_resources import cuobjdump

# A kernel that has none of these leaves nothing behind, not even an error.
EFFECT = re.compile(r"\b(?:STG|ST|RED|REDG|ATOM|ATOMG|BPT\.TRAP)\b")
JUMP = re.compile(r"\bBRA\b.*?(0x[0-9a-f]+)")
END = re.compile(r"^(?:EXIT|RET|BPT)\b")  # not under a condition
CONDITIONAL = re.compile(r"^@|\bBRA\S* !?U?P\d")


class Kernel(NamedTuple):
    """One kernel for one architecture: its demangled name, registers of a thread, and instructions as text."""

    name: str
    registers: int
    places: tuple[int, ...]
    instructions: tuple[str, ...]

    def has(self, pattern: str) -> bool:
        """Whether any instruction matches."""
        return any(re.search(pattern, text) for text in self.instructions)


def compiled(nvcc: str, source: str, virtual: str, real: str, folder: Path, csrc: Path = CSRC) -> list[Kernel]:
    """The kernels that a source instantiates, with the project's own flags; PTX of `virtual` made code for `real`."""
    file, cubin = folder / "kernels.cu", folder / "kernels.cubin"
    file.write_text(source)
    target = f"arch=compute_{virtual},code=sm_{real}"
    command = [nvcc, *NVCC, f"-I{csrc}", "-gencode", target, "-cubin", "-o", str(cubin), str(file)]
    # A sanitizer that is loaded before the tests (`make sanitize`) is not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return kernels_of(cubin)


def kernels_of(cubin: Path) -> list[Kernel]:
    """Every kernel in a file of machine code for one architecture. Raises FileNotFoundError without cuobjdump."""
    tool = cuobjdump()
    if tool is None:
        raise FileNotFoundError("cuobjdump was not found: install the CUDA toolkit or Triton")
    path = f"{Path(tool).parent}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"  # it calls nvdisasm

    def said(flag: str) -> str:
        text = subprocess.run([tool, flag, str(cubin)], check=True, capture_output=True, text=True, env={"PATH": path})
        return subprocess.run(["c++filt"], input=text.stdout, check=True, capture_output=True, text=True).stdout

    usage = re.findall(r"^ Function (.*):\n\s+REG:(\d+)", said("-res-usage"), flags=re.MULTILINE)
    registers = {name: int(count) for name, count in usage}
    found = []
    for part in re.split(r"^\s*Function : ", said("-sass"), flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?)\s*;", body)
        places, texts = tuple(int(place, 16) for place, _ in lines), tuple(text for _, text in lines)
        found.append(Kernel(name.strip(), registers[name.strip()], places, texts))
    return found


def does_nothing(kernel: Kernel) -> bool:
    """Whether a kernel neither writes anything nor ends in an error."""
    return not any(EFFECT.search(text) for text in kernel.instructions)


class Turn(NamedTuple):
    """What one turn of a loop executes in a warp, on the shortest way on which all tiles are copied and multiplied."""

    executed: int
    copies: int
    products: int


def turns(kernel: Kernel) -> list[Turn]:
    """One for each innermost loop with tensor-core instructions, in the order of the code; a turn takes one k tile."""
    index = {place: number for number, place in enumerate(kernel.places)}
    loops: list[tuple[int, int]] = []
    for last, text in enumerate(kernel.instructions):
        jump = JUMP.search(text)
        first = index.get(int(jump[1], 16), last + 1) if jump else last + 1
        inner = any(first <= one and other <= last for one, other in loops)
        if first <= last and not inner and any("MMA" in one for one in kernel.instructions[first : last + 1]):
            loops.append((first, last))
    found = (_turn(kernel.instructions, index, first, last) for first, last in loops)
    return [turn for turn in found if turn is not None]


def _turn(texts: Sequence[str], index: dict[int, int], first: int, last: int) -> Turn | None:
    """Follows all ways from a loop's first instruction to its last; inner loops run once."""
    # By instruction: the fewest executed before it, by what was copied and multiplied until then.
    before: defaultdict[int, dict[tuple[int, int], int]] = defaultdict(dict)
    before[first][0, 0] = 0
    whole: dict[tuple[int, int], int] = {}
    for at in range(first, last + 1):
        text = texts[at]
        for (copies, products), executed in before.pop(at, {}).items():
            key = copies + ("LDGSTS" in text), products + ("MMA" in text)
            for reached in [whole] if at == last else [before[to] for to in _next(text, at, last, index)]:
                reached[key] = min(reached.get(key, sys.maxsize), executed + 1)
    if not whole:
        return None
    copies, products = max(whole, key=lambda key: (key[1], key[0]))
    return Turn(whole[copies, products], copies, products)


def _next(text: str, at: int, last: int, index: dict[int, int]) -> Iterator[int]:
    """The instructions that may follow inside the loop, further on."""
    jump = JUMP.search(text)
    if jump and at < (target := index.get(int(jump[1], 16), last + 1)) <= last:
        yield target
    if CONDITIONAL.search(text) or not (jump or END.search(text)):
        yield at + 1


def waits_for_each_product(kernel: Kernel) -> bool:
    """Whether the assembler made warpgroup products wait for each other: only the last of several may be waited for."""
    products = [text for text in kernel.instructions if "HGMMA" in text]
    return sum("gsb0" in text for text in products) > 1

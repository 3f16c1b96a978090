"""Reads NVIDIA machine code: registers and stack of one kernel, and the instructions of many at once."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import triton

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = 16  # bytes


def _run(tool: str, flags: list[str], contents: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(contents)
        file.flush()
        command = [str(BINARIES / tool), *flags, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def registers_and_stack(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and its bytes of stack."""
    fields = dict(re.findall(r"(REG|STACK):(\d+)", _run("cuobjdump", ["-res-usage"], cubin)))
    return int(fields["REG"]), int(fields["STACK"])


def code_of(cubin: bytes) -> bytes:
    """The instructions of a file with one kernel: its ELF section named .text and the kernel's name."""
    table = struct.unpack_from("<Q", cubin, 40)[0]
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + number * size) for number in range(count)]
    start_of_names = sections[names][4]
    codes = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin[start_of_names + name :].startswith(b".text.")
    ]
    assert len(codes) == 1, f"one kernel is expected in a file but there are {len(codes)}"
    return codes[0]


def _branch_from(line: str, start: int) -> str:
    """A line whose branch leads to an address counted from `start`."""
    return re.sub(r"(\bBRA\b.*?)\b0x([0-9a-f]+)", lambda found: f"{found[1]}{int(found[2], 16) - start:#x}", line)


def loops(instructions: str) -> list[list[str]]:
    """The innermost loops of one kernel, as their instructions: what lies between a branch back and where it leads."""
    lines = instructions.splitlines()
    ends = [
        (int(found[1], 16) // INSTRUCTION, last)
        for last, line in enumerate(lines)
        if (found := re.search(r"\bBRA\b.*?\b0x([0-9a-f]+)", line)) and int(found[1], 16) // INSTRUCTION < last
    ]
    return [
        lines[first : last + 1]
        for first, last in ends
        if not any(first <= other and end <= last and (other, end) != (first, last) for other, end in ends)
    ]


def disassemble(architecture: int, codes: Iterable[bytes]) -> list[str]:
    """The instructions of each kernel as text, one a line; addresses count from the kernel's beginning."""
    # All kernels in one go: the disassembler needs half a second to start and a hundredth of one for each.
    codes = list(codes)
    name = f"SM{architecture}a" if architecture >= 90 else f"SM{architecture}"
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(\S.*?);", _run("nvdisasm", ["-b", name, "-ndf"], b"".join(codes)))
    assert len(lines) * INSTRUCTION == sum(map(len, codes)), f"{len(lines)} instructions were disassembled"
    texts, first = [], 0
    for code in codes:
        last = first + len(code) // INSTRUCTION
        texts.append("\n".join(_branch_from(line, first * INSTRUCTION) for line in lines[first:last]))
        first = last
    return texts

"""What nvcc makes of the kernels: 16-byte accesses, no spills, few registers. No GPU is needed."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
HOME = os.environ.get("CUDA_HOME", "/usr/local/cuda")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=f"{HOME}/bin")
ARCHITECTURES = ("80", "90", "100")
# 256 threads of 64 registers: four blocks, half of the threads that a multiprocessor can hold.
MOST_REGISTERS = 64
KERNELS = 10 + 12 + 12
# Of a move with all its loops: divisions and a branch for each of four rows made it 571 on 9.0. Few
# blocks have to find so many rows that it shows.
MOST_INSTRUCTIONS = 400

pytestmark = pytest.mark.skipif(NVCC is None, reason="no CUDA compiler (nvcc) is installed")


def nvcc(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [
            str(NVCC), "-std=c++20", "-O3", "-Werror=all-warnings", "-I.", *arguments,
            "cuda/kernels.cu",
        ],
        capture_output=True, text=True, cwd=CSRC, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@cache
def ptx() -> dict[str, str]:
    """The PTX of each kernel, by its mangled name."""
    text = nvcc("-arch=compute_80", "-ptx", "-o", "-").stdout
    bodies = re.findall(r"\.entry (\w+)\((.*?)^\}", text, re.DOTALL | re.MULTILINE)
    return dict(bodies)


def accesses(body: str) -> tuple[set[str], set[str]]:
    """Loads around the L1 cache, and all stores, as PTX has them."""
    loads = set(re.findall(r"\bld\.global\.cs\.([\w.]+)", body))
    return loads, set(re.findall(r"\bst\.(?:global\.)?(?:cs\.)?([\w.]+)", body))


@pytest.mark.parametrize(
    ("unit", "width"),
    [(16, "v4.u32"), (8, "v2.u32"), (4, "u32"), (2, "u16"), (1, "u8")],
)
@pytest.mark.parametrize("gather", [True, False])
def test_a_move_uses_its_unit_and_no_other(gather: bool, unit: int, width: str) -> None:
    found = [
        body for name, body in ptx().items()
        if re.search(rf"move_kernelILb{int(gather)}ELi{unit}E", name)
    ]  # fmt: skip
    assert len(found) == 1
    loads, stores = accesses(found[0])
    same = {width, width.replace("u", "b"), width.replace("u", "s")}
    assert len(loads) == len(stores) == 1
    assert loads <= same
    assert stores <= same
    # Four rows at a time: as many loads are under way before the first store.
    assert found[0].count("ld.global.cs.") >= 4


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_wide_verbs_read_and_write_16_bytes_of_items(verb: str) -> None:
    wide = {
        name: body for name, body in ptx().items()
        if f"{verb}_kernel" in name and re.search(r"Li[48]EE", name)
    }  # fmt: skip
    assert wide
    for name, body in wide.items():
        loads, stores = accesses(body)
        items = stores if verb == "decode" else loads
        assert any(access.startswith("v4.") for access in items), name


@cache
def cubin(architecture: str) -> tuple[str, bytes]:
    """What ptxas says of the kernels of an architecture, and their ELF file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernels.cubin"
        done = nvcc(f"-arch=sm_{architecture}", "-cubin", "-Xptxas=-v", "-o", str(file))
        return done.stdout + done.stderr, file.read_bytes()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_spills_and_few_registers(architecture: str) -> None:
    text, _ = cubin(architecture)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", text)
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", text)]
    assert len(registers) == len(spills) == KERNELS
    assert set(spills) == {("0", "0", "0")}
    assert max(registers) <= MOST_REGISTERS


def instructions(elf: bytes) -> dict[str, int]:
    """Of each kernel: 16 bytes each, in a section of the ELF file that is named after it."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    texts = elf[headers[names][4] :]
    found = {}
    for name, _, _, _, offset, nbytes in headers:
        kernel = texts[name : texts.index(b"\0", name)].decode().removeprefix(".text.")
        words = [elf[at : at + 2] for at in range(offset, offset + nbytes, 16)]
        while words and int.from_bytes(words[-1], "little") & 0xFFF == 0x918:  # NOP, to fill up
            words.pop()
        found[kernel] = len(words)
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_moves_have_few_instructions(architecture: str) -> None:
    _, elf = cubin(architecture)
    moves = {n: c for n, c in instructions(elf).items() if "move_kernel" in n}
    moves = {n: c for n, c in moves.items() if n.startswith("_ZN")}
    assert len(moves) == 10
    assert max(moves.values()) <= MOST_INSTRUCTIONS, moves
    assert min(moves.values()) > 100, moves

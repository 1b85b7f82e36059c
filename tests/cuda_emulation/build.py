"""Builds ``cache_core._cuda`` for emulated GPUs, in a folder of its own, with g++ alone.

Objects are kept by what they are made from, so that only the first run of a machine takes long.
``LMCACHE_SANITIZE=1`` adds AddressSanitizer and UndefinedBehaviorSanitizer (tests/sanitizers.sh).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nanobind  # type: ignore[import-untyped]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / "build" / "cuda_emulation"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or "c++"

FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing"]
# The real module may be loaded too, and both share the types of ``_native``: what both define needs
# another name here.
RENAMES = ("Transfer", "DeviceMemory", "CudaError", "Mark", "PinnedSlab")
RENAMED = [f"-D{name}=Emulated{name}" for name in RENAMES]
DEFINED = [
    "-DNDEBUG", "-DNB_DOMAIN=lmcache", "-DNB_COMPACT_ASSERTIONS",
    '-DLMCACHE_CUDA_ARCHITECTURES="none"', '-DLMCACHE_CUDA_TOOLKIT="emulated"',
]  # fmt: skip
# Kernels take the way of the GPU.
KERNELS = ["-x", "c++", "-D__CUDA_ARCH__=900", "-include", str(HERE / "cuda_runtime.h")]
OURS = ("-Wall", "-Wextra", "-ffp-contract=off")
CSRC = (
    "bind/bind_cuda.cpp", "cuda/cuda_memory.cpp", "cuda/kernels.cu", "cuda/mark.cpp",
    "cuda/transfer.cpp", "memory/pool.cpp", "memory/slab.cpp", "memory/stream.cpp",
    "paged/moves.cpp", "paged/paged.cpp", "paged/row_plan.cpp",
)  # fmt: skip


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def build() -> Path:
    """The module's file. Raises ``RuntimeError`` with what the compiler says."""
    package = Path(nanobind.__path__[0])
    flags = [
        *FLAGS, *DEFINED, *RENAMED, f"-I{HERE}", f"-I{ROOT / 'csrc'}",
        f"-I{nanobind.include_dir()}",
        f"-isystem{package / 'ext/robin_map/include'}",
        f"-isystem{sysconfig.get_path('include')}",
    ]  # fmt: skip
    checks: list[str] = []
    if os.environ.get("LMCACHE_SANITIZE"):
        checks = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1"]
    ours = [*(ROOT / "csrc" / name for name in CSRC), *sorted(HERE.glob("*.cpp"))]
    headers = [*sorted((ROOT / "csrc").rglob("*.[hi]*")), *sorted(HERE.glob("*.h"))]
    common = _digest(headers, [COMPILER, nanobind.__version__, *flags])
    KEPT.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        own = [*OURS, *checks, *(KERNELS if source.suffix == ".cu" else [])]
        own = own if source in ours else []
        made = KEPT / f"{source.stem}-{_digest([source], [common, *own])}.o"
        if not made.exists():
            part = made.with_suffix(f".{os.getpid()}")
            _run([COMPILER, *flags, *own, "-c", str(source), "-o", str(part)])
            part.replace(made)
        return made

    with ThreadPoolExecutor(2) as threads:
        objects = list(threads.map(compiled, [package / "src/nb_combined.cpp", *ours]))
    module = KEPT / f"_cuda-{_digest([], [str(path) for path in objects])}.so"
    if not module.exists():
        part = module.with_suffix(f".{os.getpid()}")
        # What this defines it also uses, whatever CUDA runtime the process has loaded besides.
        link = ["-shared", "-Wl,-Bsymbolic", "-pthread", *checks]
        _run([COMPILER, *link, *map(str, objects), "-o", str(part)])
        part.replace(module)
    return module


def _digest(files: Sequence[Path], words: Sequence[str]) -> str:
    found = hashlib.sha256("\0".join(words).encode())
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


if __name__ == "__main__":
    print(build())

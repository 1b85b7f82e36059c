"""Puts ``_native`` and ``_cuda`` in their place: carried ones for this Python, those that are
there, or new ones from CMake.

    python -m benchmarks.gpu.modules FOLDER [--carried MODULES] [--architecture 90-real]
        [--cuda] [--gpu]

FOLDER is CMake's. ``--cuda``: with the kernels, which needs a toolkit and no GPU. ``--gpu``: the
driver must show one. Nothing is fetched: CMake, a compiler and nanobind have to be there.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.files import ROOT, compiled_digest

PACKAGE = ROOT / "cache_core"
# Beside the modules that were built: a digest of what they were built from.
_SOURCES = "sources.txt"
_SHOW = "from cache_core import _native as n; print(n.__file__); print(n.CUDA)"
_SHOW_CUDA = """
from cache_core.transfer.cuda import cuda_devices, cuda_module
print(cuda_module().__file__, cuda_module().TOOLKIT, cuda_module().ARCHITECTURES)
"""
_SHOW_GPU = "print(*cuda_devices(), sep='; ')"


def names(cuda: bool) -> list[str]:
    """File names of the modules for this Python."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return [f"_native{suffix}", *([f"_cuda{suffix}"] if cuda else [])]


def place(folder: Path, cuda: bool) -> str:
    """Copies the modules for this Python from ``folder``. Returns why it did not, or nothing: one
    is not there, or they were built here from other sources than these."""
    lacking = [name for name in names(cuda) if not (folder / name).exists()]
    if lacking:
        return f"{folder} has no {' and no '.join(lacking)}"
    told = folder / _SOURCES
    if told.exists() and told.read_text() != compiled_digest():
        return f"the modules in {folder} are of other sources"
    for name in names(cuda):
        # A process that has the old one loaded keeps it: the file is replaced, not written over.
        part = PACKAGE / f".{name}.{os.getpid()}"
        shutil.copyfile(folder / name, part)
        part.replace(PACKAGE / name)
    return ""


def can_stay(cuda: bool) -> bool:
    """Whether modules load and are of the sources as they are. Installed elsewhere, they are the
    affair of whoever installed them: `make`, which `make gpu` has called before."""
    done = subprocess.run(
        [sys.executable, "-c", _SHOW], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return False
    if Path(done.stdout.splitlines()[0]).parent != PACKAGE:
        return True
    sources = [ROOT / "CMakeLists.txt", *(ROOT / "csrc").rglob("*.*")]
    return are_newer([PACKAGE / name for name in names(cuda)], sources)


def are_newer(made: Sequence[Path], sources: Sequence[Path]) -> bool:
    """Whether all of ``made`` are there and none is older than one of ``sources``."""
    if not all(file.exists() for file in made):
        return False
    return min(f.stat().st_mtime for f in made) >= max(f.stat().st_mtime for f in sources)


def build(folder: Path, architecture: str | None, cuda: bool) -> None:
    """Raises ``SystemExit`` with what is missing, or with the compiler's exit code."""
    cmake = shutil.which("cmake")
    if cmake is None:
        raise SystemExit("there is no cmake here; carry modules instead: make gpu GPU_MODULES=so")
    options = [f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_BUILD_TYPE=Release"]
    options += [f"-DLMCACHE_CUDA={'ON' if cuda else 'OFF'}"]
    options += [f"-DLMCACHE_CUDA_ARCHITECTURES={architecture}"] if architecture else []
    options += ["-G", "Ninja"] if shutil.which("ninja") else []
    sources = compiled_digest()
    for command in (
        [cmake, "-S", str(ROOT), "-B", str(folder), *options],
        [cmake, "--build", str(folder), "--parallel"],
    ):
        print("+", *command, flush=True)
        code = subprocess.run(command, check=False).returncode
        if code:
            raise SystemExit(1)
    (folder / _SOURCES).write_text(sources)
    why = place(folder, cuda)
    if why:
        raise SystemExit(f"{why}: no nvcc that works, or sources that change; see the log above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--carried", type=Path)
    parser.add_argument("--architecture")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--gpu", action="store_true")
    args = parser.parse_args()
    cuda = args.cuda or args.gpu
    why = place(args.carried, cuda) if args.carried else "nothing was carried"
    if why and args.carried:
        print(f"{why}; building them")
    if why and not can_stay(cuda):
        build(args.folder, args.architecture, cuda)
    show = _SHOW + (_SHOW_CUDA if cuda else "") + (_SHOW_GPU if args.gpu else "")
    raise SystemExit(subprocess.run([sys.executable, "-c", show], cwd=ROOT, check=False).returncode)


if __name__ == "__main__":
    main()

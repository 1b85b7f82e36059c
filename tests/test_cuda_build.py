"""A CUDA compiler that is old, broken, or knows few architectures must not break the install: CMake
builds what it can, or no kernels, and says so. With scripts in front of the real compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOME = os.environ.get("CUDA_HOME", "/usr/local/cuda")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=f"{HOME}/bin")
CMAKE = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
ALL = "80-real;90-real;100-real;100-virtual"

# What CMakeLists.txt does with csrc/cuda/cuda.cmake, without the modules.
PROJECT = f"""
cmake_minimum_required(VERSION 3.18...4.1)
project(trial LANGUAGES CXX)
include({ROOT}/csrc/cuda/cuda.cmake)
file(WRITE ${{CMAKE_BINARY_DIR}}/state "${{cuda_state}}")
if(cuda_works)
  add_executable(trial {ROOT}/csrc/cuda/trial.cu)
  target_include_directories(trial PRIVATE {ROOT}/csrc)
  set_target_properties(trial PROPERTIES CUDA_ARCHITECTURES "${{cuda_architectures}}")
endif()
"""

pytestmark = pytest.mark.skipif(
    NVCC is None or CMAKE is None, reason="no CUDA compiler (nvcc), or no CMake"
)


def configured(folder: Path, script: str, architectures: str = ALL) -> tuple[str, str]:
    """What is said of the kernels, and the commands that would build them, with a shell script for
    nvcc. Fails where the configuration does."""
    nvcc = folder / "nvcc"
    nvcc.write_text(f'#!/bin/sh\n{script}\nexec {NVCC} "$@"\n')
    nvcc.chmod(0o755)
    (folder / "CMakeLists.txt").write_text(PROJECT)
    done = subprocess.run(
        [
            str(CMAKE), "-S", str(folder), "-B", str(folder / "build"),
            f"-DLMCACHE_CUDA_ARCHITECTURES={architectures}",
        ],
        capture_output=True, text=True, timeout=300, env=os.environ | {"CUDACXX": str(nvcc)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = (folder / "build").rglob("flags.make")
    return (folder / "build" / "state").read_text(), "".join(f.read_text() for f in made)


def for_each(*cases: str) -> str:
    """A loop over the arguments of nvcc; its last lines are the cases of a shell."""
    return 'for a in "$@"; do case $a in\n' + "\n".join(cases) + "\nesac; done"


# As of CUDA 12.4, which knows nothing of Blackwell.
OLDER = for_each(
    "--list-gpu-arch) printf 'compute_50\\ncompute_80\\ncompute_90\\n'; exit 0;;",
    '*compute_100*|*sm_100*) echo "nvcc fatal   : Unsupported gpu architecture" >&2; exit 1;;',
)


def test_architectures_that_the_compiler_does_not_know_are_left_out(tmp_path: Path) -> None:
    """The newest one that is left serves later GPUs by its PTX."""
    state, commands = configured(tmp_path, OLDER)
    assert state.startswith("built by CUDA ")
    assert state.endswith(
        " for 80-real, 90-real, 90-virtual (it does not know 100-real, 100-virtual)"
    )
    assert "sm_80" in commands
    assert "code=[compute_90]" in commands or "code=compute_90" in commands
    assert "100" not in commands


@pytest.mark.parametrize(
    ("script", "architectures", "said"),
    [
        ("exit 1", ALL, "no CUDA compiler (nvcc) that works was found"),
        (OLDER, "100-real;100-virtual", "knows none of 100-real, 100-virtual"),
        (for_each("--list-gpu-arch) exit 1;;"), ALL, "--list-gpu-arch fails; CUDA 12.0 or later"),
        (
            for_each("*trial.cu) echo 'trial.cu(9): error: no such \"thing\"' >&2; exit 1;;"),
            ALL,
            "does not compile them: trial.cu(9): error: no such  thing ",
        ),
    ],
    ids=["broken", "too old for each", "too old to say", "can't"],
)
def test_without_a_compiler_for_them_there_are_no_kernels(
    script: str, architectures: str, said: str, tmp_path: Path
) -> None:
    state, commands = configured(tmp_path, script, architectures)
    assert state.startswith("not built: ")
    assert said in state
    assert commands == ""


def test_a_compiler_without_the_language_is_named(tmp_path: Path) -> None:
    """By its version, before CMake ends at a standard that it does not know."""
    old = tmp_path / "old.h"
    old.write_text(
        "#undef __CUDACC_VER_MAJOR__\n#undef __CUDACC_VER_MINOR__\n"
        "#define __CUDACC_VER_MAJOR__ 11\n#define __CUDACC_VER_MINOR__ 8\n"
    )
    script = for_each(f'*CompilerId.cu) exec {NVCC} -include {old} "$@";;')
    state, commands = configured(tmp_path, script)
    assert state.startswith("not built: CUDA 11.8")
    assert "has no C++20; 12.0 or later is needed" in state
    assert commands == ""

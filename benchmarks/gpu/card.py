"""The GPU as its driver tells it, and what else shapes a figure: toolkit, torch, versions."""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.files import replace_text

_QUERY = ("name", "driver_version", "memory.total", "compute_cap")
_PCIE = "pcie.link.gen.current,pcie.link.gen.max,pcie.link.width.current,clocks.sm"


class NoCard(RuntimeError):
    """One line: why there is no GPU to be seen here."""


@dataclass(frozen=True, slots=True)
class Card:
    """The first GPU; ``compute`` is its compute capability, ``9.0``."""

    name: str
    driver: str
    memory: str
    compute: str

    @property
    def architecture(self) -> str:
        """As CMake names it: machine code for this GPU alone, which is soonest compiled."""
        return f"{self.compute.replace('.', '')}-real"


def card() -> Card:
    """Raises :class:`NoCard`."""
    program = shutil.which("nvidia-smi")
    if program is None:
        raise NoCard("there is no nvidia-smi here")
    command = [program, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCard(f"nvidia-smi does not answer: {error}") from error
    lines = [line for line in done.stdout.splitlines() if line.count(",") == len(_QUERY) - 1]
    if done.returncode or not lines:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise NoCard(f"nvidia-smi sees none: {said[0] if said else 'it says nothing'}")
    return Card(*(value.strip() for value in lines[0].split(",")))


def facts() -> dict[str, Any]:
    """What can be found of the machine and of the versions that take part; a part that can't is
    told as ``{"error": ...}``: it must not keep the others from being told."""
    return {
        "machine": _tried(_machine),
        "versions": _tried(_versions),
        "torch": _tried(_torch),
        "kernels": _tried(_kernels),
        "card": _tried(lambda: asdict(card())),
        "link": _tried(lambda: _said("nvidia-smi", f"--query-gpu={_PCIE}", "--format=csv")),
        "nvcc": _tried(lambda: _said("nvcc", "--version")),
        "compute-sanitizer": _tried(lambda: _said("compute-sanitizer", "--version")),
        "memory": _tried(lambda: _said("free", "-m")),
        "locked memory": _tried(lambda: _said("sh", "-c", "ulimit -l")),
        "room": _tried(lambda: _said("df", "-h", "/dev/shm", "/tmp", ".")),
    }


def _machine() -> Any:
    from lmcache_cli.machine import machine

    return machine()


def _versions() -> Any:
    from lmcache_cli.machine import versions

    return versions() | {"python": sys.version.split()[0]}


def _torch() -> Any:
    """Without loading it, which takes a minute where its files are not in memory yet."""
    found = find_spec("torch")
    if found is None or found.origin is None:
        raise ImportError("torch is not installed")
    told = runpy.run_path(str(Path(found.origin).with_name("version.py")))
    return {"version": told["__version__"], "cuda": told["cuda"]}


def _kernels() -> Any:
    from cache_core import _native
    from cache_core.transfer.cuda import cuda_module

    cuda = cuda_module()
    told = {"toolkit": cuda.TOOLKIT, "architectures": cuda.ARCHITECTURES}
    return {"built": _native.CUDA, **told}


def _said(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (done.stdout + done.stderr).strip().splitlines()


def _tried(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception as error:  # noqa: BLE001 - the rest is still worth telling
        return {"error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="JSON of all that was found")
    found = facts()
    text = json.dumps(found, indent=1)
    replace_text(parser.parse_args(arguments).file, text + "\n")
    print(text)


if __name__ == "__main__":
    main()

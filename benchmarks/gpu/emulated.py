"""Runs a module or a script with emulated GPUs in the place of ``cache_core._cuda``: a rehearsal of
what needs a GPU, on a machine without one. Times mean nothing then.

    python -m benchmarks.gpu.emulated [--set MODULE.NAME=NUMBERS]... MODULE|SCRIPT.py [ARGUMENTS]

``--set`` makes a number of a module smaller, or several with commas: emulated kernels are slow.
"""

from __future__ import annotations

import runpy
import sys
from importlib import import_module
from pathlib import Path

import cache_core
from tests.cache_core.emulated_cuda import NAME, Emulation


def main(arguments: list[str]) -> None:
    emulation = Emulation()
    sys.modules[NAME] = emulation.cuda
    cache_core._cuda = emulation.cuda  # type: ignore[attr-defined]
    # By an odd seed work is done at once or now and then: who waits for nothing gets there too.
    emulation.reset(1)
    while arguments[:1] == ["--set"]:
        reduce(arguments[1])
        arguments = arguments[2:]
    sys.argv = arguments
    if arguments[0].endswith(".py"):
        sys.path.insert(0, str(Path(arguments[0]).parent))
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def reduce(setting: str) -> None:
    """Raises ``SystemExit`` where the module has no number, or no tuple of some, of that name."""
    where, _, text = setting.partition("=")
    module, _, name = where.rpartition(".")
    numbers = tuple(int(part) for part in text.split(","))
    kind = type(getattr(import_module(module), name, None))
    if kind not in (int, tuple):
        raise SystemExit(f"emulated: {where} is no number; name one that the module has")
    setattr(import_module(module), name, numbers if kind is tuple else numbers[0])


if __name__ == "__main__":
    main(sys.argv[1:])

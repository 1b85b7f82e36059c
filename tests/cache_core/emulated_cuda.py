"""Emulated GPUs: ``cache_core._cuda`` as ``tests/cuda_emulation`` builds it, and its controls."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.machinery import ExtensionFileLoader
from types import ModuleType
from typing import Any, NamedTuple

from tests.cuda_emulation.build import build

NAME = "cache_core._cuda"
# Errors that tests make calls return.
INVALID_VALUE, NO_MEMORY, LAUNCH_FAILURE, NOT_SUPPORTED = 1, 2, 719, 801
# The verbs of a transfer, and what they take beyond descriptor, slots, two chunks and order.
VERBS: dict[str, tuple[Any, ...]] = {
    "gather": (),
    "scatter": (),
    "gather_dma": (),
    "scatter_dma": (),
    "gather_coded": ("float16", "fp8"),
    "scatter_coded": ("float32", "int8"),
}


@cache
def _built() -> tuple[ModuleType, ctypes.CDLL]:
    path = build()
    loader = ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    calls = ctypes.CDLL(str(path))
    calls.emulation_violation.restype = ctypes.c_char_p
    return module, calls


class Counts(NamedTuple):
    """``waits``: calls that wait for all that a GPU does; ``batches`` of copies asked for;
    ``blocks`` of the largest grid; bytes that kernels ``written``."""

    waits: int
    batches: int
    blocks: int
    written: int


class Emulation:
    """The module and its GPUs. Even seeds let work wait until somebody waits for it, odd ones run
    it at once (1 of 4) or now and then (3 of 4)."""

    def __init__(self) -> None:
        self.cuda: Any
        self.cuda, self.calls = _built()

    def reset(self, seed: int = 0) -> None:
        self.calls.emulation_reset(seed)

    def live(self) -> list[int]:
        """Streams, events, memory of devices, of the host, and registrations."""
        counts = (ctypes.c_int * 5)()
        self.calls.emulation_live(counts)
        return list(counts)

    def settled(self) -> list[int]:
        """The same, without what only waits for Python to find it."""
        if any(self.live()):
            gc.collect()
        return self.live()

    def counts(self) -> Counts:
        """Since the last reset."""
        found = (ctypes.c_longlong * 4)()
        self.calls.emulation_counts(found)
        return Counts(*found)

    def nbytes(self) -> tuple[int, int]:
        """Of pinned memory that CUDA allocated, and of devices."""
        found = (ctypes.c_longlong * 2)()
        self.calls.emulation_bytes(found)
        return found[0], found[1]

    def priority(self, stream: int) -> int:
        """Less is more."""
        return int(self.calls.emulation_priority(ctypes.c_void_p(stream)))

    @property
    def violation(self) -> str:
        return str(self.calls.emulation_violation().decode())

    @property
    def pending(self) -> int:
        return int(self.calls.emulation_pending())

    def fail_call(self, n: int, error: int) -> None:
        self.calls.emulation_fail_call(ctypes.c_longlong(n), error)

    def fail_work(self, n: int) -> None:
        self.calls.emulation_fail_work(ctypes.c_longlong(n))

    @property
    def failed(self) -> bool:
        """Whether the call that was to fail has come."""
        return bool(self.calls.emulation_failed())

    def has_context(self, device: int) -> bool:
        return bool(self.calls.emulation_has_context(device))

    def unread_error(self) -> int:
        return int(self.calls.cudaPeekAtLastError())

    def stream(self) -> int:
        """A stream of the current device, as an engine has one."""
        made = ctypes.c_void_p()
        assert self.calls.cudaStreamCreateWithFlags(ctypes.byref(made), 1) == 0
        return made.value or 0

    def end_stream(self, stream: int) -> None:
        assert self.calls.cudaStreamDestroy(ctypes.c_void_p(stream)) == 0

    def copy(self, to: int, start: int, nbytes: int, stream: int) -> None:
        """Queues what an engine would do on its stream."""
        done = self.calls.cudaMemcpyAsync(
            ctypes.c_void_p(to), ctypes.c_void_p(start), ctypes.c_size_t(nbytes), 4,
            ctypes.c_void_p(stream),
        )  # fmt: skip
        assert done == 0

    def synchronize(self) -> int:
        return int(self.calls.cudaDeviceSynchronize())


@contextmanager
def emulated() -> Iterator[Emulation]:
    """The emulated module in the place of the real one. At the end nothing may be left: memory,
    streams, events, unread errors."""
    emulation = Emulation()
    package = sys.modules["cache_core"]
    real, attribute = sys.modules.get(NAME), getattr(package, "_cuda", None)
    sys.modules[NAME] = emulation.cuda
    package._cuda = emulation.cuda  # type: ignore[attr-defined]
    emulation.reset()
    before = emulation.settled()
    try:
        yield emulation
        # Not ==: what a failed test left may go at any time.
        left = emulation.settled()
        # Threads of a closed cache that read may still be on their way out.
        end = time.monotonic() + 10
        while any(now > then for now, then in zip(left, before, strict=True)):
            assert time.monotonic() < end, left
            time.sleep(0.01)
            left = emulation.settled()
        assert emulation.violation == ""
        assert emulation.unread_error() == 0
    finally:
        if real is None:
            del sys.modules[NAME]
        else:
            sys.modules[NAME] = real
        if attribute is None:
            del package._cuda
        else:
            package._cuda = attribute  # type: ignore[attr-defined]

"""The native verbs among threads, forked children and interpreters that shut down."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cache_core import _native
from tests.cache_core import reference as _reference
from tests.cache_core.paged_world import large, random_bytes, u64

ROOT = Path(__file__).parents[2]
SIZE = 1 << 20


def copy_once(source: np.ndarray, target: np.ndarray, threads: int) -> None:
    start, to = source.ctypes.data, target.ctypes.data
    _native.copy(u64(to), u64(start), u64(len(source)), threads)


def test_eight_threads_at_once() -> None:
    """Each gets its own bytes, whoever's workers moved them."""
    world, tokens = large("HND", 2), np.arange(4096, dtype=np.int32)
    expected = {
        name: world.run(getattr(_reference, name), _reference, "HND")
        for name in ("gather", "scatter")
    }
    keys = _reference.chunk_keys(tokens, 64, bytes(32), bytes(32))
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        start.wait()
        for turn in range(5):
            name = ("gather", "scatter")[(seed + turn) % 2]
            assert world.run(getattr(_native, name), _native, "HND", 3) == expected[name]
            source, target = random_bytes(SIZE, seed), np.zeros(SIZE, np.uint8)
            copy_once(source, target, 3)
            assert np.array_equal(source, target)
            assert _native.chunk_keys(tokens, 64, bytes(32), bytes(32)) == keys

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def calls() -> dict[str, Callable[[], object]]:
    """Native calls, with nothing beside them that lets go of the lock as well."""
    world, tokens = large("HND", 16), np.zeros(1 << 18, np.int32)
    engine, chunks = (np.zeros(n, np.uint8) for n in (world.engine_bytes, world.chunk_bytes))
    source, target = np.zeros(16 * SIZE, np.uint8), np.zeros(16 * SIZE, np.uint8)

    def move(verb: Callable[..., None]) -> None:
        verb(*world.arguments(_native, engine, chunks), "HND")

    return {
        "chunk_keys": lambda: _native.chunk_keys(tokens, 64, bytes(32), bytes(32)),
        "copy": lambda: copy_once(source, target, 1),
        "gather": lambda: move(_native.gather),
        "scatter": lambda: move(_native.scatter),
        "Slab": lambda: _native.Slab(16 * SIZE),
    }


@pytest.mark.parametrize("name", ["chunk_keys", "copy", "gather", "scatter", "Slab"])
def test_the_interpreter_lock_is_let_go(name: str) -> None:
    """With a switch interval of hours, another thread runs only if the call lets it."""
    call = calls()[name]
    go, ran = threading.Event(), []

    def other() -> None:
        go.wait()
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        go.set()
        for _ in range(500):
            if ran:
                break
            call()
        got_through = bool(ran)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert got_through


PRELUDE = """
import os, sys, threading
import numpy as np
from cache_core import _native
def u64(value): return np.array([value], np.uint64)
source, target = np.ones(1 << 24, np.uint8), np.zeros(1 << 24, np.uint8)
def move(threads):
    target[:] = 0
    _native.copy(u64(target.ctypes.data), u64(source.ctypes.data), u64(1 << 24), threads)
    assert target.all()
"""
FORK = """
move(3)
stop = False
def busy():
    a, b = np.ones(1 << 22, np.uint8), np.zeros(1 << 22, np.uint8)
    while not stop:
        _native.copy(u64(b.ctypes.data), u64(a.ctypes.data), u64(1 << 22), 3)
thread = threading.Thread(target=busy)
thread.start()
codes = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        move(3)
        os._exit(7)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop = True
thread.join()
move(3)
assert codes == [7] * 8, codes
"""
EXIT = """
move(4)
print("done")
"""
DAEMONS = """
begun = threading.Barrier(4)
def busy():
    a, b = np.ones(1 << 24, np.uint8), np.zeros(1 << 24, np.uint8)
    arguments = u64(b.ctypes.data), u64(a.ctypes.data), u64(1 << 24), 2
    begun.wait()
    while True:
        _native.copy(*arguments)
for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
begun.wait()
for _ in range(5):
    move(3)
print("done")
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + script],
        capture_output=True, text=True, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_a_forked_child_has_workers_of_its_own() -> None:
    """Also if the parent forks while its pool is at work."""
    run(FORK)


@pytest.mark.parametrize("script", [EXIT, DAEMONS], ids=["sleeping workers", "daemons at work"])
def test_exit_is_clean(script: str) -> None:
    assert run(script) == "done\n"

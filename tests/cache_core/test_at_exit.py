"""A process that ends without closing its cache loses no store that a few seconds can save."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import os, sys, threading
from cache_core.cache import TieredCache
from tests.cache_core.gated_tier import GatedTier, memory, put
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine

class Disk(GatedTier):
    def write(self, keys, place):
        ended.wait()
        print("wrote", len(keys), flush=True)
        return super().write(keys, place)

    def close(self):
        print("closed", flush=True)

ended = threading.Event()
cache = TieredCache(LAYOUT, [memory(8), Disk("disk", 8)])
engine = MemoryEngine(LAYOUT, 1)
for n in range(3):
    put(cache, engine, [n]).result(60)
if sys.argv[1] == "forked":
    child = os.fork()
    if not child:
        sys.exit()
    os.waitpid(child, 0)
    print("the child ended", flush=True)
if sys.argv[1] == "closed":
    ended.set()
    cache.close()
    cache.close = cache._executor.close = None
import atexit
atexit.register(ended.set)
"""


@pytest.mark.parametrize(
    ("how", "said"), [("plain", []), ("forked", ["the child ended"]), ("closed", [])]
)
def test_what_is_queued_when_the_process_ends_is_written(how: str, said: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.split("\n") == [*said, "wrote 1", "wrote 1", "wrote 1", "closed", ""]

"""Every verb of remote tiers whose servers don't answer, each on a tier of its own and all at once.

    python -m tests.cache_core.remote_verbs URL...

Ends when all have come back. The host ``hangs`` is one whose name is being looked up for ever.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from cache_core.tiers import TierError
from cache_core.tiers.remote.remote_tier import RemoteTier
from cache_core.tiers.remote.url import open_remote
from cache_core.tiers.tier import Read
from tests.cache_core.memory_engine import LAYOUT, MemoryEngine

KEYS = [bytes([n]) * 32 for n in range(3)]
look_up = socket.getaddrinfo


def slow_look_up(host: Any, *arguments: Any, **named: Any) -> Any:
    if host == "hangs":
        threading.Event().wait()
    return look_up(host, *arguments, **named)


def ping(tier: RemoteTier) -> None:
    with pytest.raises(TierError) as error:
        tier.ping()
    assert "\n" not in str(error.value), error


def read(tier: RemoteTier) -> None:
    assert tier.read(KEYS, MemoryEngine(LAYOUT, 3).place(0, 3)) == [Read.LATER] * 3


def write(tier: RemoteTier) -> None:
    assert tier.write(KEYS, MemoryEngine(LAYOUT, 3).place(0, 3)) == [False] * 3


def contains(tier: RemoteTier) -> None:
    assert tier.contains(KEYS) == [False] * 3


def look(tier: RemoteTier) -> None:
    assert tier.read(KEYS, None) == [Read.LATER] * 3


VERBS: tuple[Callable[[RemoteTier], None], ...] = (ping, read, write, contains, look)


def main() -> None:
    socket.getaddrinfo = slow_look_up
    back: list[str] = []

    def run(url: str, verb: Callable[[RemoteTier], None]) -> None:
        tier = open_remote(url, LAYOUT.chunk_bytes)
        verb(tier)
        tier.close()
        back.append(f"{verb.__name__} {url}")

    threads = [
        threading.Thread(target=run, args=(url, verb)) for url in sys.argv[1:] for verb in VERBS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(sorted(back)))


if __name__ == "__main__":
    main()

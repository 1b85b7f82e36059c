"""What KV events and the Ledger's notes cost vLLM's scheduler: a prompt that is admitted, settled
and told, with events and without. Both take turns in each round:

    python benchmarks/kv_events.py [--tokens 32768] [--repeats 9]
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from cache_core.keys import ChunkHasher, Namespace
from cache_core.layout import KVLayout
from cache_core.ledger import NOWHERE, Hit, Ledger

TIERS = ("cpu", "disk")


def serve(request: Any, chunk: int, block: int, told: bool) -> dict[str, float]:
    """Seconds of each step of a request whose chunks are new to both tiers."""
    from cache_core.adapters.vllm.scheduler.events import Events
    from cache_core.adapters.vllm.scheduler.request_state import RequestState

    hasher = ChunkHasher(Namespace(KVLayout(1, 1, 64, "float32", chunk), "m"))
    tracked = RequestState(request, hasher)
    keys = tracked.upto(request.num_tokens)
    ledger = Ledger([None, None])
    events = Events(ledger, TIERS, chunk, block) if told else None
    found: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        answer = call()
        found[name] = time.perf_counter() - began
        return answer

    def save() -> Any:
        plan = ledger.prepare_store(keys)
        if events is not None:
            events.saving(tracked, plan)
        return plan

    def look() -> Hit:
        hit = ledger.lookup(keys)
        if events is not None:
            events.found(tracked, 0, hit)
        return hit

    def take() -> int:
        return len(events.take()) if events is not None else 0

    plan = timed("admit", save)
    timed(
        "settle",
        lambda: ledger.complete_store((m for m in plan.moves if m.target != NOWHERE), True),
    )
    timed("take_events: stored", take)
    timed("look up, all of it held", look)
    timed("clear", ledger.clear)
    timed("take_events: removed", take)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    from vllm import SamplingParams
    from vllm.envs import enable_envs_cache
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    init_none_hash(sha256)
    enable_envs_cache()  # as vLLM's engine when it has started; and so the next
    gc.collect()
    gc.freeze()
    table = Table("chunk/block", "step", "without ms", "with ms", "us a chunk more", "range")
    for chunk, block in ((32, 16), (256, 16), (128, 128)):
        hasher = get_request_block_hasher(block, sha256)
        times: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for number in range(given.repeats):
            prompt = [random.Random(number).randrange(3, 30_000) for _ in range(given.tokens)]
            settings = SamplingParams(max_tokens=1)
            request = Request("r", prompt, settings, None, block_hasher=hasher)
            for told in (False, True):
                times[told].append(serve(request, chunk, block, told))
        for name in times[True][0]:
            off, on = ([each[name] for each in times[told]] for told in (False, True))
            more = [(b - a) * 1e6 * chunk / given.tokens for a, b in zip(off, on, strict=True)]
            cells = f"{median(off) * 1e3:.2f}", f"{median(on) * 1e3:.2f}", f"{median(more):.1f}"
            table.add_row(f"{chunk}/{block}", name, *cells, f"{min(more):.1f}-{max(more):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()

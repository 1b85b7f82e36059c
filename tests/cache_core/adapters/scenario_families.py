"""Models whose layers keep different things, in real vLLM with the connector and without: the same
tokens? And what does a long hit bring?

Prints one JSON object. Arguments: folder of the model, JSON object: ``settings`` of vLLM's,
``options`` of the connector's, the number of ``requests``, of those that are asked ``alone`` too,
``long``, the tokens of a prompt that is hit (0: none), and ``draft``, the tokens that the model
drafts for itself, with layers of their own. Where vLLM's own prefix cache is on in ``settings``, it
is emptied before those that are asked alone.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.cache_core.adapters.engine_in_process import (
    Ask,
    count_preempted,
    drive,
    engine,
    mixed,
    scheduler_half,
    settle,
    worker_half,
)

AT_ONCE = 8


def main() -> None:
    model, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    settings, options = given["settings"], given["options"]
    if drafted := given.get("draft", 0):
        speculative = {"method": "draft_model", "num_speculative_tokens": drafted}
        settings["speculative_config"] = speculative | {"model": str(model)}
    asks = [replace(ask, output=2 * ask.output) for ask in mixed(given["requests"], aborts=False)]
    alone = asks[: given["alone"]]
    prompt = tokens(given["long"])
    found: dict[str, Any] = {}
    with engine(model, None, **settings | {"enable_prefix_caching": True}) as (llm, _):
        plain = drive(llm, asks, AT_ONCE)
        single = drive(llm, alone)
        if given["long"]:
            found["own hit s"] = timed(llm, prompt)
    with engine(model, options, **settings) as (llm, counts):
        preempted = count_preempted(llm)
        ours = drive(llm, asks, AT_ONCE)
        llm.reset_prefix_cache()
        before = counts.get("hit_tokens:cpu", 0)
        ours_single = drive(llm, alone)
        found["hit alone"] = counts.get("hit_tokens:cpu", 0) - before
        found["layers"] = worker_half().blocks.layers
        groups = getattr(worker_half().blocks, "groups", ())
        found["groups"] = [[g.keeps, g.span, len(g.layers), g.block_tokens] for g in groups]
        sizes = [g.chunk_bytes for g in groups]
        found["waste"] = max(sizes) * len(sizes) / sum(sizes) if sizes else 1.0
        found["chunk"] = scheduler_half(llm).options.chunk_tokens
        found["chunk bytes"] = sizes
        found["preempted"] = len(preempted)
        found["counts"] = dict(counts)
        if given["long"]:
            found["hit s"], found["loaded"] = hit(llm, prompt, counts)
    found["alike"] = sum(plain.tokens.get(n) == t for n, t in single.tokens.items())
    found["compared"] = len(ours.tokens)
    found["different"] = differing(plain.tokens, ours.tokens)
    found["different alone"] = differing(single.tokens, ours_single.tokens)
    found["failed"] = ours.failed + ours_single.failed
    print(json.dumps(found))


def tokens(count: int) -> list[int]:
    return [3 + (7919 * n * n + n) % 2000 for n in range(count)]


def timed(llm: Any, prompt: list[int]) -> list[float]:
    """Seconds to the first token of a prompt that vLLM itself has already."""
    drive(llm, [Ask(prompt, 1)])
    return [ttft(llm, prompt) for _ in range(7)]


def ttft(llm: Any, prompt: list[int]) -> float:
    began = time.perf_counter()
    drive_one(llm, prompt)
    return time.perf_counter() - began


def drive_one(llm: Any, prompt: list[int]) -> None:
    from vllm import SamplingParams

    core = llm.llm_engine
    wanted = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    core.add_request(f"one-{time.perf_counter_ns()}", {"prompt_token_ids": prompt}, wanted)
    while not any(output.finished for output in core.step()):
        pass


def hit(llm: Any, prompt: list[int], counts: dict[str, float]) -> tuple[list[float], float]:
    """Seconds to the first token of a prompt that our tiers have, and the bytes of such a load."""
    times = []
    drive(llm, [Ask(prompt, 1)])
    for _ in range(7):
        before = counts.get("read_bytes:cpu", 0)
        times.append(ttft(llm, prompt))
        settle(llm)
        drive(llm, [Ask([5, 6, 7], 2)])
        loaded = counts.get("read_bytes:cpu", 0) - before
    return times, loaded


def differing(plain: dict[int, list[int]], ours: dict[int, list[int]]) -> list[int]:
    return sorted(n for n in plain.keys() | ours.keys() if plain.get(n) != ours.get(n))


if __name__ == "__main__":
    main()

"""Runs real vLLM in a process of its own: scenarios import this, tests start scenarios.

Engine and both halves of the connector share the process, so that a scenario can look at all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
os.environ.update(ENVIRONMENT)
os.environ.setdefault("OMP_NUM_THREADS", "1")

VOCABULARY = 2048


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: prompt tokens, tokens wanted, and after how many steps it is aborted."""

    prompt: Sequence[int]
    output: int = 8
    abort_after: int | None = None
    salt: str | None = None


@dataclass(slots=True)
class Outcome:
    """Output tokens of each request that was not aborted, and what the connector counted."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)


def connector(options: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's ``kv_transfer_config`` with our connector."""
    return {
        "kv_connector": "TieredKVConnector",
        "kv_connector_module_path": "cache_core.adapters.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": dict(options),
    }


@contextmanager
def engine(
    model: Path, options: Mapping[str, Any] | None, **settings: Any
) -> Iterator[tuple[Any, dict[str, float]]]:
    """A vLLM engine, with the connector if ``options`` are given, and the counters so far."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    if options is not None:
        settings["kv_transfer_config"] = connector(options)
    given = {"max_model_len": 4096, "block_size": 32, "enable_prefix_caching": False}
    given |= {"dtype": "float32"} | settings
    llm = LLM(model=str(model), enforce_eager=True, seed=0, **given)
    counts: dict[str, float] = {}
    core = llm.llm_engine.engine_core.engine_core
    if options is not None:
        keep_counts(core.scheduler.connector.scheduler, counts)
        keep_counts(worker_half(), counts)
    try:
        yield llm, counts
        if options is not None:
            core.scheduler.connector.scheduler.check()
    finally:
        llm.llm_engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def scheduler_half(llm: Any) -> Any:
    """The connector's side in the scheduler."""
    return llm.llm_engine.engine_core.engine_core.scheduler.connector.scheduler


def worker_half() -> Any:
    """The connector's side in the worker."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group().worker


def keep_counts(side: Any, into: dict[str, float]) -> None:
    """Adds up what vLLM takes from a side."""
    take = side.take_counts

    def taken() -> dict[str, float]:
        counts: dict[str, float] = take()
        for name, amount in counts.items():
            into[name] = into.get(name, 0.0) + amount
        return counts

    side.take_counts = taken


def count_preempted(llm: Any) -> list[str]:
    """Grows by every request that vLLM preempts."""
    seen: list[str] = []
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    preempt = scheduler._preempt_request

    def watched(request: Any, *more: Any, **named: Any) -> Any:
        seen.append(request.request_id)
        return preempt(request, *more, **named)

    scheduler._preempt_request = watched
    return seen


def drive(llm: Any, asks: Sequence[Ask], concurrency: int = 1) -> Outcome:
    """Keeps ``concurrency`` requests in flight, stepping the engine by hand."""
    from vllm import SamplingParams

    outcome = Outcome()
    core = llm.llm_engine
    waiting = list(enumerate(asks))
    running: dict[str, tuple[int, Ask, int]] = {}
    serial = random.getrandbits(32)
    while waiting or running:
        while waiting and len(running) < concurrency:
            number, ask = waiting.pop(0)
            name = f"{serial}-{number}"
            prompt: dict[str, Any] = {"prompt_token_ids": list(ask.prompt)}
            if ask.salt is not None:
                prompt["cache_salt"] = ask.salt
            wanted = SamplingParams(temperature=0, max_tokens=ask.output, ignore_eos=True)
            core.add_request(name, prompt, wanted)
            running[name] = (number, ask, 0)
        for output in core.step():
            number, _, _ = running[output.request_id]
            if output.finished:
                del running[output.request_id]
                done = output.outputs[0]
                if done.finish_reason == "length":
                    outcome.tokens[number] = list(done.token_ids)
                else:
                    outcome.failed.append(number)
        for name, (number, ask, steps) in list(running.items()):
            running[name] = (number, ask, steps + 1)
            if ask.abort_after is not None and steps + 1 >= ask.abort_after:
                core.abort_request([name])
                del running[name]
    settle(llm)
    return outcome


def settle(llm: Any) -> None:
    """Steps on until everything is saved and vLLM has its blocks back."""
    core = llm.llm_engine.engine_core.engine_core
    while core.scheduler.has_requests():
        llm.llm_engine.step()


def mixed(count: int, seed: int = 0, aborts: bool = True) -> list[Ask]:
    """Requests over four documents and their beginnings, some aborted, some unique."""
    rng = random.Random(seed)

    def text(length: int) -> list[int]:
        return [rng.randrange(3, VOCABULARY) for _ in range(length)]

    documents = [text(900) for _ in range(4)]
    asks = []
    for _ in range(count):
        shared = rng.choice(documents)[: rng.choice((64, 200, 500, 900))]
        prompt = shared + text(rng.randrange(1, 60)) if rng.random() < 0.9 else text(300)
        aborted = aborts and rng.random() < 0.15
        asks.append(Ask(prompt, rng.randrange(1, 24), rng.randrange(1, 6) if aborted else None))
    return asks

"""What one simulated history is: drawn from its seed, so that a seed is all that has to be told."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.vllm_sim.layers import KINDS


@dataclass(frozen=True, slots=True)
class Settings:
    """``idle`` is how slow tiers are (see :class:`~benchmarks.vllm_sim.jobs.Jobs`), ``unread`` the
    probability that a read of a chunk fails, leaving garbage, ``unwritten`` that a write does;
    ``resets``, ``updates`` and ``pauses`` those that a step begins with a reset of all caches, with
    new weights, and with an end of all requests and a reset, as before sleep; ``forgets`` that all
    leaves vLLM's own prefix cache which no request uses, as if others had needed the room."""

    seed: int
    kind: str = "full"
    requests: int = 60
    at_once: int = 10
    kv_tokens: int = 1920
    block_tokens: int = 32
    budget: int = 256
    asynchronous: bool = False
    drafts: int = 0
    prefix_caching: bool = True
    priorities: bool = False
    idle: float = 0.5
    unread: float = 0.0
    resets: float = 0.0
    updates: float = 0.0
    unwritten: float = 0.0
    pauses: float = 0.0
    forgets: float = 0.0
    aborts: float = 0.2
    kv_events: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def blocks(self) -> int:
        """Of KV, vLLM's null block counted: more than the longest request needs."""
        return self.kv_tokens // self.block_tokens + 1

    @classmethod
    def drawn(cls, seed: int, kind: str = "full") -> Settings:
        """Anything that a user may set, in any combination, for a kind of model (see
        :data:`~benchmarks.vllm_sim.layers.KINDS`)."""
        r = random.Random(seed)
        asynchronous = r.random() < 0.5
        options: dict[str, Any] = {"cpu_size": r.choice(["256KiB", "2MiB", "64MiB", "64MiB"])}
        options["policy"] = r.choice(["lru", "lfu-aging", "gdsf", "s3-fifo", "arc"])
        options["placement"] = r.choice(["write_on_insertion", "write_on_eviction"])
        options["wait_s"] = r.choice([0, 0.01, 1])
        options["chunk_tokens"] = r.choice([32, 32, 64, 128])
        options["load"] = r.choice(["auto", "async"] if asynchronous else ["auto", "async", "sync"])
        if r.random() < 0.4:
            options["disk_size"] = r.choice(["1MiB", "16MiB"])
        drawn = cls(
            seed,
            kind,
            requests=r.choice([30, 60, 90]),
            at_once=r.choice([1, 1, 4, 10, 20]),
            kv_tokens=r.choice([1024, 1920, 3840, 12_800]),
            block_tokens=r.choice([16, 32]) if options["chunk_tokens"] > 16 else 16,
            budget=r.choice([64, 256, 1024]),
            asynchronous=asynchronous,
            drafts=0 if asynchronous else r.choice([0, 0, 0, 3]),
            prefix_caching=r.random() < 0.4,
            priorities=r.random() < 0.5,
            idle=r.choice([0.0, 0.3, 0.7, 0.9]),
            unread=r.choice([0.0, 0.0, 0.05, 0.2]),
            resets=r.choice([0.0, 0.0, 0.02]),
            updates=r.choice([0.0, 0.0, 0.01]),
            aborts=r.choice([0.0, 0.2]),
            unwritten=r.choice([0.0, 0.0, 0.1]),
            pauses=r.choice([0.0, 0.0, 0.01]),
            options=options,
        )
        if r.random() < 0.3:
            # Many wait, for what is on disk and has no room in DRAM but what a prefetch may take.
            options |= {"cpu_size": "256KiB", "disk_size": "16MiB", "prefetch_size": "128KiB"}
            options["chunk_tokens"] = 32
            drawn = replace(drawn, at_once=20, kv_tokens=1024)
        if kind == "full":
            return drawn
        # Of several groups vLLM can't take back a part of a load; it has no draft for states.
        if options["load"] == "sync":
            options["load"] = "auto"
        states = any(layers.kind == "state" for layers in KINDS[kind])
        return replace(
            drawn,
            drafts=0 if states else drawn.drafts,
            prefix_caching=drawn.prefix_caching or states,
            forgets=0.5 if states else 0.0,
            kv_tokens=drawn.kv_tokens * len(KINDS[kind]),
        )

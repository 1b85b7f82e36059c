"""Computes what a request costs: prefill by the work it is, loading by the bytes it moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from cache_core.groups import KeptLayer
from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.measured_costs import ProbedEngine, TierCost
from lmcache_cli.options.tune import PREFILL_EFFICIENCY
from lmcache_cli.tune.catalogue import Architecture, Hardware

EFFICIENCY_RANGE = (0.4, 0.6)
"""The prefill efficiencies that the ± of a predicted TTFT covers, widened where ``--efficiency``
lies outside."""
_STEP_S = 0.01
"""Seconds that an engine's step costs beside the work: scheduling, launches, sampling."""


ServingOrder = Literal["batches", "in_turn"]
"""How an engine serves requests: by continuous batching, or one after another."""


@dataclass(frozen=True, slots=True)
class RequestCost:
    """The costs of requests on one engine. ``overlap``: layers are loaded while others compute, so
    that the longer of the two counts. ``decode_s`` is a decode step's time, with ``decode_token_s``
    for each token before it. ``prefill_range``: the costs of a prefill at its fastest and its
    slowest, as far as is known; they give the ± of what is predicted. ``devices`` share the
    model."""

    prefill: PrefillCost
    tiers: Mapping[str, TierCost]
    token_bytes: int
    decode_s: float
    overlap: bool = False
    source: str = ""
    notes: tuple[str, ...] = field(default_factory=tuple)
    decode_token_s: float = 0.0
    serving: ServingOrder = "batches"
    prefill_range: tuple[PrefillCost, PrefillCost] | None = None
    model: str = ""
    devices: int = 1
    kept: tuple[KeptLayer, ...] = ()
    """The layers of a model whose layers keep different things: then ``token_bytes`` are those that
    stay, and what a hit needs beside them is in the fixed cost of a load."""

    def decoding_s(self, there: int, steps: int) -> float:
        """Returns the seconds of ``steps`` decode steps of one request alone after ``there``
        tokens."""
        return steps * (self.decode_s + self.decode_token_s * (there + (steps - 1) / 2))

    def load_s(self, tier: str, tokens: int, chunk_tokens: int) -> float:
        """Returns the seconds of loading ``tokens`` of hits from a tier."""
        chunks = -(-tokens // chunk_tokens)
        return self.tiers[tier].seconds(chunks, tokens * self.token_bytes)

    def service_s(self, prompt: int, hits: Mapping[str, int], chunk_tokens: int) -> float:
        """Returns the TTFT of one request on an idle engine, in seconds."""
        cached = sum(hits.values())
        load = sum(self.load_s(tier, n, chunk_tokens) for tier, n in hits.items() if n)
        compute = self.prefill.seconds(max(1, prompt - cached), cached)
        return max(load, compute) if self.overlap else load + compute


def catalogue_cost(
    hardware: Hardware,
    model: Architecture,
    *,
    devices: int = 1,
    efficiency: float = PREFILL_EFFICIENCY,
    item_bytes: int = 2,
    disk_bytes_s: float = 3e9,
    remote_bytes_s: float = 2.5e9,
    overlap: bool = False,
) -> RequestCost:
    """Builds the costs from data sheets. ``devices`` share the work by tensor parallelism, each
    with a link of its own. A decode step reads all active weights once (the memory's rate bounds
    it)."""
    rate = hardware.flops * devices * efficiency
    prefill = PrefillCost(_STEP_S, model.token_flops() / rate, model.pair_flops() / rate)
    link = hardware.link_bytes_s * devices
    tiers = {
        "device": TierCost(hardware.memory_bytes_s * devices),
        "cpu": TierCost(link),
        "disk": TierCost(min(link, disk_bytes_s), 1e-4),
        "remote": TierCost(min(link, remote_bytes_s), 1e-3),
    }
    decode = model.active * item_bytes / (hardware.memory_bytes_s * devices)
    low, high = EFFICIENCY_RANGE
    spread = (
        _at(prefill, efficiency / max(high, efficiency)),
        _at(prefill, efficiency / min(low, efficiency)),
    )
    notes = [
        f"{hardware.name}: {hardware.source}",
        f"{model.name}: {model.source}; {model.kv_bytes(item_bytes, devices):,} bytes of KV a"
        f" token ({'MLA' if model.latent else 'GQA'})",
        f"prefill at {efficiency:.0%} of the peak of {devices} x {hardware.name}",
    ]
    weights = model.parameters * item_bytes
    if weights > hardware.memory_bytes * devices:
        notes.append(
            f"{model.name}'s weights ({weights / 2**30:.0f} GiB) don't fit {devices} x"
            f" {hardware.name} ({hardware.memory_bytes * devices / 2**30:.0f} GiB)"
        )
    token_bytes, kept = model.kv_bytes(item_bytes, devices), tuple[KeptLayer, ...]()
    if model.mixed():
        kept = tuple(model.kept_layers(item_bytes, devices))
        token_bytes, tiers = _apart(kept, tiers)
        notes.append(mixed_note(model.name, kept))
    return RequestCost(
        prefill,
        tiers,
        token_bytes,
        decode,
        overlap,
        "catalogue",
        tuple(notes),
        prefill_range=spread,
        model=model.name,
        devices=devices,
        kept=kept,
    )


def _apart(
    kept: Sequence[KeptLayer], tiers: Mapping[str, TierCost]
) -> tuple[int, dict[str, TierCost]]:
    """Returns the bytes of a token that stay, and tiers whose loads have what a hit needs beside
    them, windows and states, as a fixed cost: a hit has at least that long a prompt."""
    token = sum(layer.token_bytes for layer in kept if layer.keeps == "all")
    seen = {"all": 0.0, "state": 0.0, "window": 1.0, "local": 0.5}
    beside = sum(
        layer.state_bytes + layer.token_bytes * (layer.span or 0) * seen[layer.keeps]
        for layer in kept
    )
    return max(1, token), {
        name: replace(cost, call_s=cost.call_s + beside / cost.bytes_per_s)
        for name, cost in tiers.items()
    }


def mixed_note(model: str, kept: Sequence[KeptLayer]) -> str:
    """Says what the layers of a model keep, and that no single order decides its hits."""
    parts = [
        (sum(layer.token_bytes for layer in kept if layer.keeps == "all"), "B a token"),
        (sum(layer.token_bytes for layer in kept if layer.span), "B a token in sight"),
        (sum(layer.state_bytes for layer in kept), "B of states"),
    ]
    text = ", ".join(f"{count:,} {what}" for count, what in parts if count)
    return (
        f"{model}'s layers keep different things ({text}): the Ledger is replayed for every stack,"
        " since no single order of chunks decides a hit"
    )


def _at(prefill: PrefillCost, times: float) -> PrefillCost:
    """Returns the cost of a prefill with ``times`` as much work."""
    return PrefillCost(prefill.a, times * prefill.b, times * prefill.c)


def probed_cost(engine: ProbedEngine, overlap: bool = False) -> RequestCost:
    """Builds the costs as measured by a probe: the engine transformers serves one request after
    another."""
    longest = max(new + cached for new, cached, _ in engine.prefill_points)
    worst = max(abs(engine.prefill.seconds(n, m) / t - 1) for n, m, t in engine.prefill_points)
    facts = engine.facts
    notes: tuple[str, ...] = (
        f"{engine.source}: {engine.model}, {facts['dtype']} on {facts['device']}, engine"
        f" {facts['engine']}, one request after another",
        f"prefill was measured with up to {longest + 1} tokens; its formula is at most"
        f" {100 * worst:.0f} % off the measured points",
    )
    token_bytes, tiers = engine.layout.token_bytes, engine.tiers
    if engine.kept:
        token_bytes, tiers = _apart(engine.kept, engine.tiers)
        notes = (*notes, mixed_note(engine.model, engine.kept))
    return RequestCost(
        engine.prefill,
        tiers,
        token_bytes,
        engine.decode_s,
        overlap,
        "probe",
        notes,
        engine.decode_token_s,
        "in_turn",
        engine.prefill_range,
        engine.model,
        kept=engine.kept,
    )

"""Computes what a request costs: prefill by the work it is, loading by the bytes it moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import ceil
from typing import Literal

from cache_core.groups import KeptLayer, balanced_groups, slot_layout
from cache_core.layout import Group
from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.engines.measured_costs import ProbedEngine, TierCost
from lmcache_cli.options.tune import PREFILL_EFFICIENCY, UTILISATION
from lmcache_cli.tune.catalogue import Architecture, Hardware
from reports.units import bytes_text

EFFICIENCY_RANGE = (0.4, 0.6)
"""The prefill efficiencies that the ± of a predicted TTFT covers, widened where ``--efficiency``
lies outside."""
_STEP_S = 0.01
"""Seconds that an engine's step costs beside the work: scheduling, launches, sampling."""


_ACTIVATION_BYTES = 2
"""The bytes of an activation: engines compute in bfloat16 also where weights are FP8."""
_STATES = 4
"""Hidden states of a step's tokens that are in memory at a time: input, residual, norm, output."""
_INNER = 7
"""The width of a step's gated MLP over the hidden state's: two halves of 3.5 each."""
_FIXED_BYTES = 3 * 2**29
"""Bytes of a card that CUDA's context, communication and graphs take: 1.5 GiB."""


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """What a model leaves of its cards for KV, in bytes over all of them: ``memory`` times
    ``utilisation`` without ``weights`` and ``activations``; or ``given``, where it is known.
    ``token_bytes`` are the KV of one token over all ranks, copies included. ``caching``: whether
    the engine keeps it for prompts that begin alike."""

    token_bytes: int
    memory: int = 0
    utilisation: float = 1.0
    weights: float = 0.0
    activations: float = 0.0
    given: int | None = None
    caching: bool = True

    @property
    def nbytes(self) -> int:
        """Returns the bytes for KV; 0 or less where the weights don't fit."""
        if self.given is not None:
            return self.given
        return int(self.memory * self.utilisation - self.weights - self.activations)

    @property
    def tokens(self) -> int:
        """Returns the tokens of KV for which there is room."""
        return max(0, self.nbytes // self.token_bytes)

    def text(self) -> str:
        """Describes the room with its parts."""
        if self.given is not None:
            return f"{bytes_text(self.given)} for KV, as given: {self.tokens:,} tokens"
        return (
            f"{bytes_text(self.memory)} x {self.utilisation:g} - weights"
            f" {bytes_text(self.weights)} - activations and graphs"
            f" {bytes_text(self.activations)} = {bytes_text(max(0, self.nbytes))} for KV:"
            f" {self.tokens:,} tokens"
        )


def device_room(
    hardware: Hardware,
    model: Architecture,
    devices: int,
    token_bytes: int,
    *,
    weight_bytes: float,
    utilisation: float = UTILISATION,
    batch_tokens: int = 8192,
    stages: int = 1,
) -> DeviceRoom:
    """Computes the room for KV of the cards that share the model, ``devices`` in each of
    ``stages``. Activations are those of a step of ``batch_tokens`` tokens: hidden states on every
    card, a gated MLP split between those of a stage."""
    width = model.heads * (model.v_dim or model.head_dim)
    each = batch_tokens * width * _ACTIVATION_BYTES * (_STATES + _INNER / devices)
    activations = devices * stages * (each + _FIXED_BYTES)
    memory = hardware.memory_bytes * devices * stages
    return DeviceRoom(token_bytes, memory, utilisation, weight_bytes, activations)


def devices_needed(
    hardware: Hardware, model: Architecture, item_bytes: float, util: float, stages: int = 1
) -> int | None:
    """Returns the fewest cards of a stage over which the model can be split and on which the
    weights leave room for KV; None where no number does."""
    weights = model.parameters * item_bytes
    for devices in model.splits() or _POWERS:
        room = device_room(
            hardware,
            model,
            devices,
            1,
            weight_bytes=weights,
            utilisation=util,
            stages=stages,
        )
        if room.nbytes > 0:
            return devices
    return None


_POWERS = tuple(1 << n for n in range(11))
_MORE_CARDS = (2, 4, 8)
_MOST_GROUPS = 64


ServingOrder = Literal["batches", "in_turn"]
"""How an engine serves requests: by continuous batching, or one after another."""


@dataclass(frozen=True, slots=True)
class RequestCost:
    """The costs of requests on one engine. ``overlap``: layers are loaded while others compute, so
    that the longer of the two counts. ``decode_s`` is a decode step's time, with ``decode_token_s``
    for each token before it. ``prefill_range``: the costs of a prefill at its fastest and its
    slowest, as far as is known; they give the ± of what is predicted. ``devices`` share the
    model, each ``device_price`` dollars an hour; ``device`` is their room for KV, None of an engine
    that keeps none."""

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
    device: DeviceRoom | None = None
    hardware: str = ""
    device_price: float = 0.0
    latent: bool = False
    """Whether KV is MLA's: all ranks have the same."""
    stages: int = 1
    """The stages of a pipeline, each on ``devices``: the work of prompts is for all of them, but
    the last part of one goes through one after another, as a decode step does."""
    splits: tuple[int, ...] = ()
    """The numbers of cards that tensor parallelism can split the model over; empty where they are
    not known."""
    kept: tuple[KeptLayer, ...] = ()
    """The layers of a model whose layers keep different things: then ``token_bytes`` are those that
    stay, and what a hit needs beside them is in the fixed cost of a load."""

    @property
    def cards(self) -> int:
        """Returns the cards of all stages."""
        return self.devices * self.stages

    def more_devices(self) -> list[int]:
        """Returns larger numbers of cards for each stage to try, up to eight times as many."""
        if not self.splits:
            return [times * self.devices for times in _MORE_CARDS]
        return [n for n in self.splits if self.devices < n <= _MORE_CARDS[-1] * self.devices]

    def groups(self, chunk_tokens: int) -> tuple[Group, ...]:
        """Returns the groups of layers where those keep different things; else none."""
        return _groups(self.kept, chunk_tokens) if self.kept else ()

    def few_groups(self, chunk_tokens: int) -> bool:
        """Returns whether layers can be replayed in chunks of that length: short ones cut states
        into hundreds of chunks each."""
        return len(self.groups(chunk_tokens)) <= _MOST_GROUPS

    def chunk_bytes(self, chunk_tokens: int) -> int:
        """Returns the bytes that a chunk of that many tokens takes in a tier below the device;
        where layers keep different things, the slot of one group's."""
        if self.kept:
            return slot_layout(self.groups(chunk_tokens), chunk_tokens).chunk_bytes
        return self.token_bytes * chunk_tokens

    def device_chunk_bytes(self, chunk_tokens: int) -> int:
        """Returns the bytes that such a chunk takes on the cards, copies that ranks have of KV
        included."""
        size = self.chunk_bytes(chunk_tokens)
        if self.device is None:
            return size
        if not self.kept:
            return self.device.token_bytes * chunk_tokens
        stored = sum(layer.token_bytes for layer in self.kept)
        return ceil(size * max(1.0, self.device.token_bytes / stored)) if stored else size

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


@lru_cache(maxsize=64)
def _groups(kept: tuple[KeptLayer, ...], chunk_tokens: int) -> tuple[Group, ...]:
    return balanced_groups(kept, chunk_tokens)


def catalogue_cost(
    hardware: Hardware,
    model: Architecture,
    *,
    devices: int = 1,
    efficiency: float = PREFILL_EFFICIENCY,
    item_bytes: int = 2,
    kv_item_bytes: int = 2,
    token_bytes: int | None = None,
    utilisation: float = UTILISATION,
    device_kv: int | None = None,
    caching: bool = True,
    disk_bytes_s: float = 3e9,
    remote_bytes_s: float = 2.5e9,
    overlap: bool = False,
    stages: int = 1,
) -> RequestCost:
    """Builds the costs from data sheets. ``devices`` share the work by tensor parallelism, each
    with a link of its own, over which it loads its part of the KV, or all of MLA's. A decode step
    reads all active weights and the KV in front of it once (the memory's rate bounds it).
    ``stages`` of so many cards are a pipeline: prompts keep all of them busy, a decode step goes
    through the weights of one after another, with a part of the requests in each.
    ``item_bytes`` are a weight's (1: FP8, computed at the rate of FP8), ``kv_item_bytes`` a value's
    of the KV; ``token_bytes`` replaces what the model's shape says of the KV of a token,
    ``device_kv`` the room that is computed for it."""
    flops = hardware.fp8_flops if item_bytes == 1 and hardware.fp8_flops else hardware.flops
    rate = flops * devices * stages * efficiency
    prefill = PrefillCost(_STEP_S, model.token_flops() / rate, model.pair_flops() / rate)
    link = hardware.link_bytes_s * stages * (1 if model.latent else devices)
    tiers = {
        "cpu": TierCost(link),
        "disk": TierCost(min(link, disk_bytes_s), 1e-4),
        "remote": TierCost(min(link, remote_bytes_s), 1e-3),
    }
    kv = token_bytes or model.stored_bytes(kv_item_bytes, devices)
    held = token_bytes or max(1, model.kv_bytes(kv_item_bytes, devices))
    memory_rate, cards = hardware.memory_bytes_s * devices, devices * stages
    low, high = EFFICIENCY_RANGE
    spread = (
        _at(prefill, efficiency / max(high, efficiency)),
        _at(prefill, efficiency / min(low, efficiency)),
    )
    weights = model.parameters * item_bytes
    room = device_room(
        hardware,
        model,
        devices,
        held,
        weight_bytes=weights,
        utilisation=utilisation,
        stages=stages,
    )
    room = replace(room, given=device_kv, caching=caching)
    notes = [
        f"{hardware.name}: {hardware.source}",
        f"{model.name}: {model.source}; {kv:,} bytes of KV a"
        f" token ({'MLA' if model.latent else 'GQA'})",
        f"prefill at {efficiency:.0%} of the peak of {cards} x {hardware.name}",
        f"room on {cards} x {hardware.name}: {room.text()}",
    ]
    if stages > 1:
        notes.append(
            f"a pipeline of {stages} stages: prompts fill all of them, but the last part of one"
            " and each decode step go through one after another"
        )
    if hardware.price:
        notes.append(
            f"${hardware.price:g} an hour for each {hardware.name}: {hardware.price_source}"
        )
    kept = tuple[KeptLayer, ...]()
    if model.mixed() and token_bytes is None:
        kept = tuple(model.kept_layers(kv_item_bytes, devices))
        kv, tiers = _apart(kept, tiers)
        notes += [mixed_note(model.name, kept), _MIXED_ROOM]
    elif model.mixed():
        notes.append(f"all of the {token_bytes:,} bytes a token are taken as KV that stays")
    return RequestCost(
        prefill,
        tiers,
        kv,
        model.active * item_bytes / memory_rate,
        overlap,
        "catalogue",
        tuple(notes),
        held / memory_rate / stages,
        prefill_range=spread,
        model=model.name,
        devices=devices,
        device=room,
        hardware=hardware.name,
        device_price=hardware.price,
        latent=bool(model.latent),
        kept=kept,
        stages=stages,
        splits=model.splits(),
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


_MIXED_ROOM = (
    "on the cards too: the Ledger of the engine's own cache is replayed, which keeps of windows and"
    " states what other requests go on from; requests that run are counted with KV of every token"
    " in every layer that has any, more than an engine takes that frees what is out of sight"
)


def _at(prefill: PrefillCost, times: float) -> PrefillCost:
    """Returns the cost of a prefill with ``times`` as much work."""
    return PrefillCost(prefill.a, times * prefill.b, times * prefill.c)


def probed_cost(engine: ProbedEngine, overlap: bool = False) -> RequestCost:
    """Builds the costs as measured by a probe: the engine transformers serves one request after
    another, vLLM in batches."""
    longest = max(new + cached for new, cached, _ in engine.prefill_points)
    worst = max(abs(engine.prefill.seconds(n, m) / t - 1) for n, m, t in engine.prefill_points)
    facts = engine.facts
    serving: ServingOrder = "batches" if facts["engine"] == "vllm" else "in_turn"
    order = "in batches" if serving == "batches" else "one request after another"
    notes: tuple[str, ...] = (
        f"{engine.source}: {engine.model}, {facts['dtype']} on {facts['device']}, engine"
        f" {facts['engine']}, {order}",
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
        serving,
        engine.prefill_range,
        engine.model,
        kept=engine.kept,
    )

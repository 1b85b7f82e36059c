"""Paged KV and chunks in numpy, in any layout: what the native moves are tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache_core import _native
from tests.cache_core import reference as _reference

Order = Literal["HND", "NHD"]


def u64(*values: int) -> NDArray[np.uint64]:
    return np.array(values, dtype=np.uint64)


def random_bytes(size: int, seed: int) -> NDArray[np.uint8]:
    return np.random.Generator(np.random.PCG64(seed)).integers(0, 256, size, dtype=np.uint8)


@dataclass
class World:
    """An engine and chunks in numpy, twice: for the native verb and for the reference."""

    shape: _reference.Paged  # its bases are offsets into the engine's memory
    slots: NDArray[np.int64]
    chunks: NDArray[np.uint64]  # offsets
    engine_bytes: int
    chunk_bytes: int

    def arguments(
        self, module: Any, engine: NDArray[np.uint8], chunks: NDArray[np.uint8]
    ) -> tuple[Any, NDArray[np.int64], NDArray[np.uint64]]:
        """What the module's verbs take, for KV and chunks in these arrays."""
        values = {field.name: getattr(self.shape, field.name) for field in fields(self.shape)}
        for plane in ("k_bases", "v_bases"):
            values[plane] = values[plane] + np.uint64(engine.ctypes.data)
        return module.Paged(**values), self.slots, self.chunks + np.uint64(chunks.ctypes.data)

    def run(self, verb: Callable[..., None], module: Any, *arguments: Any) -> bytes:
        """Runs the verb on memory that is equal each time; returns all of it."""
        engine, chunks = random_bytes(self.engine_bytes, 1), random_bytes(self.chunk_bytes, 2)
        verb(*self.arguments(module, engine, chunks), *arguments)
        return engine.tobytes() + chunks.tobytes()

    def check(self, name: str, order: Order, threads: int) -> None:
        expected = self.run(getattr(_reference, name), _reference, order)
        assert self.run(getattr(_native, name), _native, order, threads) == expected


@st.composite
def worlds(draw: st.DrawFn, item_bytes: int = 0) -> World:
    """Any affine layout, with gaps or without, in which no two rows overlap.

    With ``item_bytes`` heads are of items, which may lie apart, and K may be kept transposed where
    V is not, as vLLM's CPU backend does.
    """
    small = st.integers(1, 4)
    layers, planes, heads, blocks, block_tokens = (
        draw(values) for values in (small, st.integers(1, 2), small, small, st.integers(1, 6))
    )
    head_bytes = draw(st.sampled_from([1, 3, 16, 64]))
    items = draw(st.sampled_from([2, 6, 16, 48])) if item_bytes else 1
    head_bytes = items * item_bytes if item_bytes else head_bytes
    gap = st.sampled_from([0, 0, 0, 1, 8])
    strides: dict[str, int] = {}
    extent = item_bytes or head_bytes
    axes = draw(st.permutations([("block", blocks), ("token", block_tokens), ("head", heads)]))
    kind = draw(st.sampled_from(["side by side", "apart", "K transposed"]))
    optional: dict[str, int] = {}
    if item_bytes and kind == "K transposed":
        axes = [("token", block_tokens), ("item", items), ("block", blocks), ("head", heads)]
        optional = {"v_item_stride": item_bytes, "v_token_stride": head_bytes}
        gap = st.just(0)
    elif item_bytes:
        at = 0 if kind == "side by side" else draw(st.integers(0, 3))
        axes = [*axes[:at], ("item", items), *axes[at:]]
    for axis, count in axes:
        plain = axis == "item" and kind == "side by side"
        strides[axis] = extent + (0 if plain else draw(gap))
        extent = strides[axis] * count
    if item_bytes:
        optional |= {"item_bytes": item_bytes, "item_stride": strides["item"]}
        if kind == "side by side" and draw(st.booleans()):
            optional = {}  # a head may as well be one item
    plane_bytes = extent + draw(gap)
    places = draw(st.permutations(range(layers * planes)))
    start = draw(st.sampled_from([0, 3, 4, 8]))  # behind an array's start, which is aligned
    bases = [start + place * plane_bytes for place in places]
    num_slots = blocks * block_tokens
    # Runs of slots in any order, broken by tokens that are left out.
    cuts = sorted(draw(st.sets(st.integers(1, num_slots))) | {0, num_slots})
    runs = [list(range(a, b)) for a, b in pairwise(cuts)]
    flat = [slot for run in draw(st.permutations(runs)) for slot in run]
    for at in draw(st.lists(st.integers(0, len(flat)), max_size=4)):
        flat.insert(at, -1)
    tokens = draw(st.integers(1, 9))
    flat += [-1] * (-len(flat) % tokens)
    slots = np.array(flat, dtype=np.int64).reshape(-1, tokens)[draw(st.integers(0, 2)) :]
    chunk_bytes = layers * planes * heads * tokens * (head_bytes + 16)  # a coded row has a scale
    gap_bytes = draw(st.sampled_from([7, 16]))
    first = draw(st.sampled_from([5, 16]))
    step = chunk_bytes + gap_bytes + (-chunk_bytes % 16)
    chunks = u64(*(first + i * step for i in draw(st.permutations(range(len(slots))))))
    shape = _reference.Paged(
        k_bases=u64(*bases[:layers]),
        v_bases=u64(*bases[layers:]),
        block_tokens=block_tokens,
        block_stride=strides["block"],
        token_stride=strides["token"],
        head_stride=strides["head"],
        kv_heads=heads,
        head_bytes=head_bytes,
        num_slots=num_slots,
        **optional,
    )
    engine_bytes = start + 3 + layers * planes * plane_bytes
    return World(shape, slots, chunks, engine_bytes, 32 + len(slots) * step)


def large(order: Order, chunks: int, offset: int = 0, head_bytes: int = 512) -> World:
    """A contiguous engine of the given order, moved in long pieces; a run is cut in each chunk."""
    layers, heads, tokens = 3, 2, 96
    num_slots = chunks * tokens
    token, head = (head_bytes, num_slots) if order == "HND" else (heads, 1)
    token *= 1 if order == "HND" else head_bytes
    plane = heads * num_slots * head_bytes
    slots = np.arange(num_slots, dtype=np.int64).reshape(chunks, tokens)
    slots[:, 70] = -1
    k = offset + np.arange(layers, dtype=np.uint64) * np.uint64(2 * plane)
    shape = _reference.Paged(
        k, k + np.uint64(plane), num_slots, num_slots * token, token, head * head_bytes,
        heads, head_bytes, num_slots,
    )  # fmt: skip
    size = layers * 2 * heads * tokens * head_bytes
    starts = offset + np.arange(chunks, dtype=np.uint64)[::-1] * np.uint64(size)
    return World(shape, slots, starts, 2 * layers * plane + 64, chunks * size + 64)


def scattered(
    token_bytes: int, block_tokens: int, offset: int, *, side_by_side: bool, part: int = 1
) -> World:
    """An engine of blocks in random order, one in ``part`` of which is moved: past the caches, as
    10 MiB are. A block's K and V lie side by side, or each plane in an array of its own."""
    layers, tokens = 2, 3 * block_tokens
    chunks = -(-(10 << 20) // (2 * layers * tokens * token_bytes))
    blocks = 3 * chunks * part
    order = np.random.Generator(np.random.PCG64(5)).permutation(blocks)[: 3 * chunks]
    slots = (order[:, None] * block_tokens + np.arange(block_tokens)).reshape(chunks, tokens)
    slots[::3, tokens - 1] = -1
    block, plane = block_tokens * token_bytes, blocks * block_tokens * token_bytes
    stride = 2 * block if side_by_side else block
    k = offset + np.arange(layers, dtype=np.uint64) * np.uint64(2 * plane)
    shape = _reference.Paged(
        k, k + np.uint64(block if side_by_side else plane), block_tokens, stride, token_bytes,
        token_bytes, 1, token_bytes, blocks * block_tokens,
    )  # fmt: skip
    size = layers * 2 * tokens * token_bytes
    starts = offset + np.arange(chunks, dtype=np.uint64)[::-1] * np.uint64(size)
    return World(shape, slots.astype(np.int64), starts, 2 * layers * plane + 64, chunks * size + 64)

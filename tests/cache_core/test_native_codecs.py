"""The verbs that change KV on its way, against ``_reference_codecs``."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cache_core import _native
from tests.cache_core import reference as _reference
from tests.cache_core import reference_codecs as reference
from tests.cache_core.paged_world import Order, World, large, random_bytes, u64, worlds

ORDERS = st.sampled_from(["HND", "NHD"])
DTYPES = ["float32", "bfloat16", "float16"]
CODECS = ["fp8", "int8"]


def agree(world: World, name: str, arguments: tuple[Any, ...], **more: Any) -> None:
    """Engine and chunks are equal to the bit, but for NaNs' payloads, which no item has."""
    expected = world.run(getattr(reference, name), _reference, *arguments)

    def native(*given: Any) -> None:
        getattr(_native, name)(*given, **more)

    assert world.run(native, _native, *arguments) == expected


def finite(world: World, dtype: str) -> World:
    """Random bytes hold NaNs of many payloads; the engine's items are plain numbers here."""
    return FiniteWorld(
        world.shape, world.slots, world.chunks, world.engine_bytes, world.chunk_bytes, dtype
    )


def finite_bytes(size: int, seed: int) -> NDArray[np.uint8]:
    """0x3_ and 0xb_: exponents around 1, of either sign."""
    return ((random_bytes(size, seed) & 0x87) | 0x30).astype(np.uint8)


class FiniteWorld(World):
    """Memory whose bytes are no NaN at any alignment of any item type."""

    def __init__(self, *values: Any) -> None:
        super().__init__(*values[:-1])
        self.dtype = values[-1]

    def run(self, verb: Any, module: Any, *arguments: Any) -> bytes:
        engine, chunks = finite_bytes(self.engine_bytes, 1), finite_bytes(self.chunk_bytes, 2)
        verb(*self.arguments(module, engine, chunks), *arguments)
        return engine.tobytes() + chunks.tobytes()


@given(st.data(), st.sampled_from(["gather", "scatter"]), ORDERS)
@pytest.mark.parametrize("item_bytes", [1, 2, 4])
def test_moves_of_items_that_lie_apart(
    item_bytes: int, data: st.DataObject, name: str, order: Order
) -> None:
    data.draw(worlds(item_bytes)).check(name, order, threads=1)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40)
@given(data=st.data(), order=ORDERS, threads=st.sampled_from([1, 3]))
def test_coded(
    dtype: str, codec: str, portable: bool, data: st.DataObject, order: Order, threads: int
) -> None:
    world = finite(data.draw(worlds(reference.ITEM_BYTES[dtype])), dtype)
    for name in ("gather_coded", "scatter_coded"):
        arguments = (order, dtype, codec)
        agree(world, name, arguments, threads=threads, portable=portable)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_coded(dtype: str, codec: str, portable: bool) -> None:
    """Rows of 64 items or more, on several threads, at an odd address."""
    world = finite(large("NHD", 1, 3, 256), dtype)
    for name in ("gather_coded", "scatter_coded"):
        agree(world, name, ("HND", dtype, codec), threads=4, portable=portable)


def all_items(dtype: str) -> NDArray[np.uint8]:
    """Every 16-bit pattern; in float32 a sample with all exponents, both signs and both ends."""
    if dtype != "float32":
        return np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    bits = np.arange(0, 1 << 32, 0xFFFF, dtype=np.uint64).astype(np.uint32)
    return bits[: len(bits) // 16 * 16].view(np.uint8)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("items", [1, 16, 256])
def test_every_item(items: int, dtype: Any, codec: Any, portable: bool) -> None:
    """Subnormals, infinities and NaNs too; there and back."""
    size = reference.ITEM_BYTES[dtype]
    raw = all_items(dtype)
    rows = len(raw) // size // items
    coded = np.zeros(_native.coded_bytes(rows, items), np.uint8)
    assert len(coded) == reference.coded_bytes(rows, items)
    back = np.zeros_like(raw)
    there = u64(coded.ctypes.data)
    _native.encode(there, u64(raw.ctypes.data), rows, items, dtype, codec, 2, portable)
    _native.decode(u64(back.ctypes.data), there, rows, items, dtype, codec, 2, portable)
    for row in range(0, rows, max(1, rows // 2048)):
        at, scale = reference.coded_places(rows, items, row)
        part = slice(row * items * size, (row + 1) * items * size)
        codes, up = reference.encode_row(reference.read_items(raw[part].tobytes(), dtype), codec)
        got = coded[at : at + items]
        # The sign of a NaN is nobody's.
        nan = (codes & 0x7F == 0x7F) & (codec == "fp8")
        assert np.array_equal(got[~nan], codes[~nan])
        assert (got[nan] & 0x7F == 0x7F).all()
        assert coded[scale : scale + 4].tobytes() == up.tobytes()
        with np.errstate(over="ignore", invalid="ignore"):
            values = reference.decode_values(got, codec) * up
        expected = np.frombuffer(reference.write_items(values, dtype), np.uint8)
        known = np.repeat(~np.isnan(values), size)
        assert np.array_equal(back[part][known], expected[known])


def test_a_code_is_as_near_as_it_can_be() -> None:
    """What the codecs cost: half a step of E4M3's 3 bits of mantissa, or of 1/127 of the row."""
    values = np.random.default_rng(1).normal(size=(64, 128)).astype(np.float32)
    raw = np.ascontiguousarray(values)
    costs: list[tuple[Any, float]] = [("fp8", 2.0**-4), ("int8", 0.5 / 127)]
    for codec, most in costs:
        coded = np.zeros(_native.coded_bytes(64, 128), np.uint8)
        back = np.zeros_like(raw)
        _native.encode(u64(coded.ctypes.data), u64(raw.ctypes.data), 64, 128, "float32", codec)
        _native.decode(u64(back.ctypes.data), u64(coded.ctypes.data), 64, 128, "float32", codec)
        scale = np.abs(raw) if codec == "fp8" else np.abs(raw).max(axis=1, keepdims=True)
        floor = np.abs(raw).max(axis=1, keepdims=True) / 448 * 2.0**-10
        assert (np.abs(back - raw) <= scale * most * (1 + 1e-5) + floor).all()
        # Coding what was decoded changes nothing: tiers may code anew.
        again = np.zeros_like(coded)
        _native.encode(u64(again.ctypes.data), u64(back.ctypes.data), 64, 128, "float32", codec)
        assert np.array_equal(again[: 64 * 128], coded[: 64 * 128])


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_offsets_past_2_to_31(name: str, tmp_path: Path) -> None:
    move_far_apart(name, tmp_path, lambda _, *where: getattr(_native, name)(*where))


def move_far_apart(name: str, tmp_path: Path, move: Callable[..., None]) -> None:
    """Moves between blocks 1 GiB apart, in memory that exists only where it is touched: what
    ``move`` is given, and the arguments of a verb."""
    block, blocks = 1 << 30, 6
    with (tmp_path / "sparse").open("w+b") as file:
        file.truncate(block * blocks)
        engine = mmap.mmap(file.fileno(), block * blocks)
    memory = np.frombuffer(engine, np.uint8)
    base = memory.ctypes.data
    paged = _native.Paged(
        k_bases=u64(base + 64), v_bases=u64(base + 4096), block_tokens=2, block_stride=block,
        token_stride=128, head_stride=64, kv_heads=2, head_bytes=64, num_slots=2 * blocks,
    )  # fmt: skip
    slots = np.array([[11, -1, 0], [5, 6, 10]])
    chunk_bytes = 2 * 3 * 2 * 64
    chunks = random_bytes(2 * chunk_bytes, 3)
    there = u64(chunks.ctypes.data, chunks.ctypes.data + chunk_bytes)
    view = chunks.reshape(2, 2, 2, 3, 64)  # chunk, plane, head, token
    if name.startswith("gather"):
        expected = view.copy()
        for (chunk, token), slot in np.ndenumerate(slots):
            for plane, head in np.ndindex(2, 2):
                if slot >= 0:
                    start = (64, 4096)[plane] + slot // 2 * block + slot % 2 * 128 + head * 64
                    memory[start : start + 64] = slot * 8 + plane * 2 + head
                    expected[chunk, plane, head, token] = slot * 8 + plane * 2 + head
        move(memory, paged, slots, there, "HND")
        assert np.array_equal(view, expected)
    else:
        move(memory, paged, slots, there, "HND")
        for (chunk, token), slot in np.ndenumerate(slots):
            for plane, head in np.ndindex(2, 2):
                if slot >= 0:
                    start = (64, 4096)[plane] + slot // 2 * block + slot % 2 * 128 + head * 64
                    assert np.array_equal(
                        memory[start : start + 64], view[chunk, plane, head, token]
                    )
    del memory

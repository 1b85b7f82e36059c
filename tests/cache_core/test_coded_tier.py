"""Tiers that keep chunks coded: what comes back is what the codec makes of a chunk, once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import Addresses, KVLayout
from cache_core.tiers import DiskTier, MemoryTier, Tier
from cache_core.tiers.tensor import TensorBuffers, TensorTier
from cache_core.tiers.tier import Read
from cache_core.tiers.wrappers import CodedTier
from cache_core.transfer.chunks import ChunkBuffers, FlatBuffers, PagedBuffers
from cache_core.transfer.codec import Codec
from cache_core.transfer.coded import CodedBuffers, DecodedBuffers
from tests.cache_core.paged_world import u64

LAYOUT = KVLayout(3, 2, 16, "bfloat16", 8)
KEYS = [bytes([i]) * 32 for i in range(5)]


def codec(name: str = "fp8") -> Codec:
    found = Codec.of_layout(name, LAYOUT)
    assert found is not None
    return found


def kv(seed: int = 1) -> NDArray[np.uint16]:
    values = np.random.default_rng(seed).normal(size=(len(KEYS), LAYOUT.chunk_bytes // 2))
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def flat(chunks: NDArray[np.uint16]) -> FlatBuffers:
    steps = np.arange(len(chunks), dtype=np.uint64) * np.uint64(LAYOUT.chunk_bytes)
    return FlatBuffers(np.uint64(chunks.ctypes.data) + steps, LAYOUT.chunk_bytes)


class Scattered:
    """A place that is neither flat nor codes on its way, as an engine's may be."""

    def __init__(self, inner: FlatBuffers) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def pick(self, rows: Sequence[int]) -> Scattered:
        return Scattered(self.inner.pick(rows))

    def flat(self) -> Addresses | None:
        return None

    def copy_to(self, addresses: Addresses) -> None:
        self.inner.copy_to(addresses)

    def copy_from(self, addresses: Addresses) -> None:
        self.inner.copy_from(addresses)


def once(chunks: NDArray[np.uint16], name: str) -> NDArray[np.uint16]:
    """Coded and decoded by the verbs alone."""
    used, back = codec(name), np.zeros_like(chunks)
    for source, target in zip(chunks, back, strict=True):
        room = np.zeros(used.coded_bytes, np.uint8)
        used.encode(u64(room.ctypes.data), u64(source.ctypes.data))
        used.decode(u64(target.ctypes.data), u64(room.ctypes.data))
    return back


def tier(kind: str, folder: Path, name: str = "fp8") -> CodedTier:
    size = codec(name).coded_bytes
    inner: Tier = MemoryTier("cpu", 8, size)
    if kind == "disk":
        inner = DiskTier("disk", folder / name, 64 << 20, size, namespace=bytes(32))
    return CodedTier(inner, codec(name))


@pytest.mark.parametrize("wrap", [lambda place: place, Scattered], ids=["flat", "scattered"])
@pytest.mark.parametrize("name", ["fp8", "int8"])
@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_chunks_come_back_coded_once(kind: str, name: str, wrap: Any, tmp_path: Path) -> None:
    chunks, back = kv(), np.zeros_like(kv())
    kept = tier(kind, tmp_path, name)
    assert kept.write(KEYS, wrap(flat(chunks))) == [True] * len(KEYS)
    assert kept.contains([*KEYS, bytes(31) + b"x"]) == [True] * len(KEYS) + [False]
    order = [3, 0, 4]
    assert kept.read([KEYS[i] for i in order], wrap(flat(back[: len(order)]))) == Read.of(
        [True] * 3
    )
    assert np.array_equal(back[:3], once(chunks, name)[order])
    assert len(kept) == len(KEYS)
    kept.discard(KEYS[:2])
    assert kept.contains(KEYS) == [False, False, True, True, True]
    kept.close()


@pytest.mark.parametrize("order", ["HND", "NHD"])
def test_an_engine_codes_on_its_way(order: Any, tmp_path: Path) -> None:
    """From paged KV with no raw chunk in between: the same bytes."""
    layout = KVLayout(3, 2, 16, "bfloat16", 8, order=order)
    engine = kv().reshape(-1)[: 3 * 2 * 2 * 40 * 16].copy()
    bases = np.uint64(engine.ctypes.data) + np.arange(6, dtype=np.uint64) * np.uint64(2 * 40 * 32)
    paged = _native.Paged(bases[:3], bases[3:], 40, 0, 32, 40 * 32, 2, 32, 40)
    slots = np.random.default_rng(2).permutation(40).reshape(5, 8)
    place = PagedBuffers(paged, slots, layout)
    used = Codec.of_layout("int8", layout)
    assert used is not None
    other = np.zeros((5, used.coded_bytes), np.uint8)
    rows = np.arange(5, dtype=np.uint64) * np.uint64(used.coded_bytes)
    assert place.move_coded(np.uint64(other.ctypes.data) + rows, used, out=True)
    results = []
    for each in (place, Scattered(place)):  # type: ignore[arg-type]
        room = np.zeros((5, used.coded_bytes), np.uint8)
        there = np.uint64(room.ctypes.data) + np.arange(5, dtype=np.uint64) * np.uint64(
            used.coded_bytes
        )
        CodedBuffers(each, used).copy_to(there)
        before = engine.copy()
        CodedBuffers(each, used).copy_from(there)
        results.append((room.tobytes(), engine.tobytes()))
        engine[:] = before
    assert results[0] == results[1] and results[0][0] == other.tobytes()
    assert results[0][1] != before.tobytes()


def test_chunks_between_tiers_of_one_codec_stay_as_they_are(tmp_path: Path) -> None:
    """And are coded anew between tiers of two codecs, or decoded for one that has none."""
    chunks, back = kv(), np.zeros_like(kv())
    upper, lower = tier("cpu", tmp_path), tier("disk", tmp_path)
    upper.write(KEYS, flat(chunks))
    place = upper.place(KEYS)
    assert isinstance(place, DecodedBuffers)
    assert lower.write(KEYS, place) == [True] * len(KEYS)
    raw = MemoryTier("cpu", 8, LAYOUT.chunk_bytes)
    assert raw.write(KEYS, upper.place(KEYS)) == [True] * len(KEYS)
    other = tier("cpu", tmp_path, "int8")
    assert other.write(KEYS, upper.place(KEYS)) == [True] * len(KEYS)
    for kept in (lower, raw):
        kept.read(KEYS, flat(back))
        assert np.array_equal(back, once(chunks, "fp8"))
    other.read(KEYS, flat(back))
    assert np.array_equal(back, once(once(chunks, "fp8"), "int8"))
    # Into a coded tier's own memory.
    assert raw.read(KEYS, upper.place(KEYS)) == Read.of([True]) * len(KEYS)
    lower.close()


def test_a_device_tier_exchanges_chunks_with_a_coded_one() -> None:
    device = TensorTier("device", 8, LAYOUT, torch.device("cpu"))
    chunks, back = kv(), np.zeros_like(kv())
    kept = CodedTier(MemoryTier("cpu", 8, codec().coded_bytes), codec())
    device.write(KEYS, flat(chunks))
    assert kept.write(KEYS, device.place(KEYS)) == [True] * len(KEYS)
    device.discard(KEYS)
    place: ChunkBuffers | None = kept.place(KEYS)
    assert place is not None
    assert device.write(KEYS, place) == [True] * len(KEYS)
    tensors = device.place(KEYS)
    assert isinstance(tensors, TensorBuffers)
    device.read(KEYS, flat(back))
    assert np.array_equal(back, once(chunks, "fp8"))


def test_it_halves_the_bytes() -> None:
    layout = KVLayout(32, 8, 128, "bfloat16", 64)
    used = Codec.of_layout("fp8", layout)
    assert used is not None
    # A byte an item, and 4 for each row of 128.
    assert used.coded_bytes / layout.chunk_bytes == pytest.approx(0.5 + 4 / 256)


@pytest.mark.parametrize(
    ("name", "dtype", "size", "text"),
    [
        ("fp4", "bfloat16", 64, "codec 'fp4' is not known; use one of none, fp8, int8"),
        ("fp8", "float8_e4m3fn", 64, "this KV is float8_e4m3fn, in a byte an item already"),
        ("fp8", "bfloat16", 65, "a chunk of 65 bytes is no whole number of 16 items"),
        ("fp8", "bfloat16", 0, "a chunk of 0 bytes"),
    ],
)
def test_what_has_no_codec(name: str, dtype: str, size: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Codec.of(name, dtype, size, 16)
    assert Codec.of("none", dtype, size, 16) is None

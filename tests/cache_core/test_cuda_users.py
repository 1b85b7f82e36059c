"""What is built on the CUDA code, on emulated GPUs: the vLLM connector's moves, the probe, the
benchmark. Their figures mean nothing here."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks.gpu import transfer_rows
from cache_core.adapters.vllm.worker.kv_cuda import CudaBlocks
from cache_core.tiers.memory import MemoryTier
from cache_core.tiers.tier import Read
from cache_core.transfer.codec import Codec
from cache_core.transfer.coded import CodedBuffers
from cache_core.transfer.planner import CopyCost, Planner, RunCost, load_costs
from lmcache_cli.probe import transfer as probe
from tests.cache_core.emulated_cuda import Emulation, emulated
from tests.cache_core.paged_world import u64
from tests.cache_core.test_native_codecs import finite_bytes

LAYERS, BLOCKS, HEADS, PAGE, CONTENT, CHUNK = 3, 10, 2, 4, 16, 8


@pytest.fixture
def emulation() -> Iterator[Emulation]:
    with emulated() as found:
        yield found


class Tensors:
    """Tensors of bfloat16 ``[blocks, heads, tokens, content]`` in a GPU's memory, as far as the
    connector looks at them."""

    def __init__(self, emulation: Emulation, tokens_first: bool, device: int) -> None:
        self.order = (0, 2, 1, 3) if tokens_first else (0, 1, 2, 3)
        shape = (BLOCKS, HEADS, PAGE, CONTENT)
        self.there = tuple(shape[axis] for axis in self.order)
        self.nbytes = int(np.prod(shape)) * 2
        self.memory = emulation.cuda.DeviceMemory(device, LAYERS * self.nbytes)
        self.transfer = emulation.cuda.Transfer(device)
        strides = dict(zip(self.order, np.cumprod((1, *self.there[:0:-1]))[::-1], strict=True))
        self.caches: list[Any] = [
            SimpleNamespace(
                shape=shape,
                stride=lambda: tuple(int(strides[axis]) for axis in range(4)),
                data_ptr=lambda i=i: self.memory.address + i * self.nbytes,
                element_size=lambda: 2,
                dtype=torch.bfloat16,
                device=torch.device("cuda", device),
            )
            for i in range(LAYERS)
        ]

    def write(self, values: NDArray[np.uint16]) -> None:
        """``[layers, blocks, heads, tokens, content]``."""
        axes = (0, *(axis + 1 for axis in self.order))
        flat = np.ascontiguousarray(values.transpose(axes))
        self.transfer.copy(u64(self.memory.address), u64(flat.ctypes.data), u64(flat.nbytes))
        self.transfer.synchronize()

    def read(self) -> NDArray[np.uint16]:
        flat = np.zeros((LAYERS, *self.there), np.uint16)
        self.transfer.copy(u64(flat.ctypes.data), u64(self.memory.address), u64(flat.nbytes))
        self.transfer.synchronize()
        return flat.transpose((0, *(self.order.index(axis) + 1 for axis in range(4))))


def numbers(seed: int) -> NDArray[np.uint16]:
    shape = (LAYERS, BLOCKS, HEADS, PAGE, CONTENT)
    return finite_bytes(int(np.prod(shape)) * 2, seed).view(np.uint16).reshape(shape)


def tokens_of(kv: NDArray[np.uint16], slots: NDArray[np.int64]) -> NDArray[np.uint16]:
    """``[n, layers, tokens, heads, content]``."""
    found = kv[:, slots // PAGE, :, slots % PAGE]  # [n, tokens, layers, heads, content]
    return found.transpose(0, 2, 1, 3, 4)


PLANS = {
    way: Planner(
        {
            (direction, which): CopyCost((RunCost(1, 0.0, 0.0 if which == way else 1.0),))
            for direction in ("d2h", "h2d")
            for which in ("dma", "kernel")
        }
    )
    for way in ("dma", "kernel")
}


@pytest.mark.parametrize("seed", [0, 1, 3])
@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("way", ["dma", "kernel"])
@pytest.mark.parametrize("tokens_first", [True, False])
def test_a_tier_below_vllm(
    emulation: Emulation, tokens_first: bool, way: str, device: int, seed: int
) -> None:
    """Stored from some slots, loaded into others, through the pinned tier of the connector."""
    emulation.reset(seed)
    tensors = Tensors(emulation, tokens_first, device)
    blocks = CudaBlocks(tensors.caches, CHUNK, PLANS[way])
    tier = MemoryTier("cpu", 4, blocks.chunk_bytes, blocks.memory())
    assert [emulation.has_context(i) for i in (0, 1)] == [device == 0, device == 1]
    kv = numbers(1)
    tensors.write(kv)
    out = np.array([[5, 6, 7, 8, 20, 21, 22, 23], [0, 1, 2, 3, 36, 37, 38, 39]])
    into = out[:, ::-1].copy()
    into[0, 3] = -1
    keys = [b"a", b"b"]
    assert tier.write(keys, blocks.place(out)) == [True, True]
    tensors.write(numbers(2))
    # A layer at a time, as a load beside the model's steps is.
    for layer in range(LAYERS):
        assert tier.read(keys, blocks.place(into, range(layer, layer + 1))) == Read.of([True, True])
    expected, moved = numbers(2), tokens_of(kv, out)
    for chunk, token in zip(*np.nonzero(into >= 0), strict=True):
        slot = into[chunk, token]
        expected[:, slot // PAGE, :, slot % PAGE] = moved[chunk, :, token]
    assert np.array_equal(tensors.read(), expected)
    tier.close()


@pytest.mark.parametrize("pinned", [True, False])
def test_codes_below_vllm(emulation: Emulation, pinned: bool) -> None:
    """The same codes as from raw chunks, with a scale for K and one for V of each head."""
    tensors = Tensors(emulation, True, 0)
    blocks = CudaBlocks(tensors.caches, CHUNK, PLANS["kernel"])
    kv = numbers(1)
    tensors.write(kv)
    slots = np.array([[5, 6, 7, 8, 20, 21, 22, 23]])
    codec = Codec.of("fp8", "bfloat16", blocks.chunk_bytes, CONTENT // 2)
    assert codec is not None
    memory = blocks.memory()
    room = np.zeros(codec.coded_bytes, np.uint8)
    there = memory.addresses(1, codec.coded_bytes) if pinned else u64(room.ctypes.data)
    place = blocks.place(slots)
    CodedBuffers(place, codec).copy_to(there)
    whole = (ctypes.c_uint8 * codec.coded_bytes).from_address(int(there[0]))
    raw = np.ascontiguousarray(tokens_of(kv, slots))
    expected = np.zeros(codec.coded_bytes, np.uint8)
    codec.encode(u64(expected.ctypes.data), u64(raw.ctypes.data))
    used = np.ctypeslib.as_array(whole)
    assert np.array_equal(used, expected)
    tensors.write(numbers(2))
    CodedBuffers(place, codec).copy_from(there)
    codec.decode(u64(raw.ctypes.data), u64(expected.ctypes.data))
    assert np.array_equal(tokens_of(tensors.read(), slots), raw)
    memory.release()


def test_probe_transfer(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probe, "RUN_BYTES", (64, 256, 1024))
    monkeypatch.setattr(probe, "RUNS", (1, 8, 64))
    monkeypatch.setattr(probe.Bench.__init__, "__defaults__", (1 << 17,))
    file = tmp_path / "transfer.json"
    assert probe.run_probe_transfer(1, 3, file, str(tmp_path / "moves.json"), True) == 0
    document = json.loads((tmp_path / "moves.json").read_text())
    assert len(document["moves"]) == 3 * 3 * 4
    planner = load_costs(file, "emulated GPU")
    assert len(planner.costs) == 4
    assert planner.choose("d2h", 4, 1024) in ("dma", "kernel")
    assert not emulation.has_context(0)


def test_the_benchmark_runs(emulation: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"small": (2, 2, 2, 64), "MLA": (2, 1, 1, 72)}
    monkeypatch.setattr(transfer_rows, "SHAPES", shapes)
    matrix = transfer_rows.Matrix(tuple(shapes), (16,), (256, 512), (2, 3), 1 << 16, 1)
    best = transfer_rows.peaks(matrix.peak_bytes, matrix.repeats)
    rows = [
        row for case in matrix.cases() for row in transfer_rows.measured(case, matrix, best, None)
    ]
    # Chunks that go both ways at once are two at least.
    assert len(rows) == 2 * 2 * (7 + 10)
    assert {row.direction for row in rows if row.tokens == 256} == {"d2h", "h2d", "d2d"}
    assert {row.ctas for row in rows if row.way == "dma"} == {None}
    assert {row.ctas for row in rows if row.way == "kernel"} == {2, 3, None}
    assert all(row.rate > 0 and row.slowdown is None for row in rows)
    assert all(row.nbytes % row.run_bytes == 0 for row in rows)
    assert transfer_rows.gpu_table(rows).row_count == len(rows)


def test_the_benchmark_measures_what_decides_first() -> None:
    matrix = transfer_rows.Matrix()
    cases = matrix.cases()
    assert len(cases) == len(set(cases)) == 3 * 4 * 3 * 2
    first = cases[: 3 * 4]
    assert {(case.tokens, case.scattered) for case in first} == {(matrix.tokens[0], True)}
    assert [case.runs for case in first] == sorted(case.runs for case in first)
    assert {8 << 10, 64 << 10} <= {case.run_bytes for case in first}

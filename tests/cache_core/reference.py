"""What each verb of ``_native`` means: slow, plain, and the tests' judge.

Same arguments, same effects, except that nothing here has threads.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PREFIX_DOMAIN = b"lmcache.prefix/1".ljust(32, b"\0")
CONTENT_DOMAIN = b"lmcache.content/1".ljust(32, b"\0")


def chunk_keys(
    tokens: NDArray[np.int32],
    chunk_tokens: int,
    root: bytes,
    namespace: bytes,
    content: bool = True,
) -> tuple[list[bytes], list[bytes]]:
    prefixes: list[bytes] = []
    contents: list[bytes] = []
    previous = root
    for i in range(len(tokens) // chunk_tokens):
        chunk = tokens[i * chunk_tokens : (i + 1) * chunk_tokens].astype("<i4").tobytes()
        previous = hashlib.sha256(PREFIX_DOMAIN + previous + chunk).digest()
        prefixes.append(previous)
        if content:
            contents.append(hashlib.sha256(CONTENT_DOMAIN + namespace + chunk).digest())
    return prefixes, contents


@dataclass(frozen=True, slots=True)
class Paged:
    k_bases: NDArray[np.uint64]
    v_bases: NDArray[np.uint64]
    block_tokens: int
    block_stride: int
    token_stride: int
    head_stride: int
    kv_heads: int
    head_bytes: int
    num_slots: int
    item_bytes: int | None = None
    item_stride: int | None = None
    v_token_stride: int | None = None
    v_item_stride: int | None = None

    @property
    def items(self) -> int:
        return self.head_bytes // (self.item_bytes or self.head_bytes)

    def planes(self) -> list[NDArray[np.uint64]]:
        return [self.k_bases, self.v_bases] if len(self.v_bases) else [self.k_bases]

    def address(self, layer: int, plane: int, slot: int, head: int, item: int = 0) -> int:
        block, token = divmod(slot, self.block_tokens)
        by_token, by_item = self.token_stride, self.item_stride or self.item_bytes or 0
        if plane == 1:
            by_token = self.token_stride if self.v_token_stride is None else self.v_token_stride
            by_item = by_item if self.v_item_stride is None else self.v_item_stride
        inside = block * self.block_stride + token * by_token
        inside += head * self.head_stride + item * by_item
        return int(self.planes()[plane][layer]) + inside


@dataclass(frozen=True, slots=True)
class Row:
    """One head of one token in one plane of one layer; ``number`` is its place in its chunk."""

    chunk: int
    layer: int
    plane: int
    head: int
    slot: int
    number: int


def rows(paged: Paged, slots: NDArray[np.int64], order: str) -> Iterator[Row]:
    """Of each token that isn't left out."""
    if slots.size and (slots.min() < -1 or slots.max() >= paged.num_slots):
        raise IndexError("the engine has no such slot")
    n, tokens = slots.shape
    layers, planes, heads = len(paged.k_bases), len(paged.planes()), paged.kv_heads
    for i, layer, plane, head, token in np.ndindex(n, layers, planes, heads, tokens):
        slot = int(slots[i, token])
        if slot == -1:
            continue
        number = head * tokens + token if order == "HND" else token * heads + head
        number += (layer * planes + plane) * heads * tokens
        yield Row(i, layer, plane, head, slot, number)


def pairs(
    paged: Paged, slots: NDArray[np.int64], chunks: NDArray[np.uint64], order: str
) -> Iterator[tuple[int, int, int]]:
    """For each contiguous piece: its address in the engine, in its chunk, and its bytes."""
    size = paged.item_bytes or paged.head_bytes
    for row in rows(paged, slots, order):
        here = int(chunks[row.chunk]) + row.number * paged.head_bytes
        for item in range(paged.items):
            there = paged.address(row.layer, row.plane, row.slot, row.head, item)
            yield there, here + item * size, size


def gather(paged: Paged, slots: NDArray[np.int64], chunks: NDArray[np.uint64], order: str) -> None:
    for there, here, size in pairs(paged, slots, chunks, order):
        ctypes.memmove(here, there, size)


def scatter(paged: Paged, slots: NDArray[np.int64], chunks: NDArray[np.uint64], order: str) -> None:
    for there, here, size in pairs(paged, slots, chunks, order):
        ctypes.memmove(there, here, size)


def copy(dst: NDArray[np.uint64], src: NDArray[np.uint64], nbytes: NDArray[np.uint64]) -> None:
    for to, start, size in zip(dst, src, nbytes, strict=True):
        ctypes.memmove(int(to), int(start), int(size))

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

    def planes(self) -> list[NDArray[np.uint64]]:
        return [self.k_bases, self.v_bases] if len(self.v_bases) else [self.k_bases]

    def address(self, layer: int, plane: int, slot: int, head: int) -> int:
        block, token = divmod(slot, self.block_tokens)
        inside = block * self.block_stride + token * self.token_stride + head * self.head_stride
        return int(self.planes()[plane][layer]) + inside


def rows(
    paged: Paged, slots: NDArray[np.int64], chunks: NDArray[np.uint64], order: str
) -> Iterator[tuple[int, int]]:
    """For each head of each token that isn't left out: its address in the engine and its chunk."""
    if slots.size and (slots.min() < -1 or slots.max() >= paged.num_slots):
        raise IndexError("the engine has no such slot")
    n, tokens = slots.shape
    layers, planes, heads = len(paged.k_bases), len(paged.planes()), paged.kv_heads
    for i, layer, plane, head, token in np.ndindex(n, layers, planes, heads, tokens):
        slot = int(slots[i, token])
        if slot == -1:
            continue
        row = head * tokens + token if order == "HND" else token * heads + head
        row += (layer * planes + plane) * heads * tokens
        yield paged.address(layer, plane, slot, head), int(chunks[i]) + row * paged.head_bytes


def gather(paged: Paged, slots: NDArray[np.int64], chunks: NDArray[np.uint64], order: str) -> None:
    for there, here in rows(paged, slots, chunks, order):
        ctypes.memmove(here, there, paged.head_bytes)


def scatter(paged: Paged, slots: NDArray[np.int64], chunks: NDArray[np.uint64], order: str) -> None:
    for there, here in rows(paged, slots, chunks, order):
        ctypes.memmove(there, here, paged.head_bytes)


def copy(dst: NDArray[np.uint64], src: NDArray[np.uint64], nbytes: NDArray[np.uint64]) -> None:
    for to, start, size in zip(dst, src, nbytes, strict=True):
        ctypes.memmove(int(to), int(start), int(size))

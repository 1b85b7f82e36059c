"""What the verbs of ``_native`` that change KV on its way mean, slowly; see ``reference.py``.

Formats are told by their definitions, not by bit tricks: E4M3 by the table of its 256 values (OCP
8-bit Floating Point Specification, section 5.1), rounding by the distance to both neighbours.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from tests.cache_core.reference import Paged, Row, rows

Floats = NDArray[np.float32]

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
LARGEST = {"fp8": 448.0, "int8": 127.0}
# Below this a row counts as zeros.
TINY = np.float32(1e-30)


def _e4m3() -> NDArray[np.float64]:
    """Values of the codes 0 to 126; 127 is NaN."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    normal = (8 + mantissa) * 2.0 ** (exponent - 10)
    return np.where(exponent > 0, normal, mantissa * 2.0**-9)


E4M3 = _e4m3()


def read_items(raw: bytes, dtype: str) -> Floats:
    if dtype == "bfloat16":
        return (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, dtype).astype(np.float32)


def write_items(values: Floats, dtype: str) -> bytes:
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return values.astype(dtype).tobytes()
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16).tobytes()


def encode_values(values: Floats, codec: str) -> NDArray[np.uint8]:
    """Values within what the code can hold, to the nearest, ties to even."""
    if codec == "int8":
        limited = np.nan_to_num(np.clip(values, -127, 127), nan=0.0)
        return np.rint(limited).astype(np.int8).view(np.uint8)
    magnitude = np.minimum(np.abs(values).astype(np.float64), 448.0)
    magnitude = np.nan_to_num(magnitude, nan=0.0)
    above = np.minimum(np.searchsorted(E4M3, magnitude), 126)
    below = np.maximum(above - 1, 0)
    up, down = E4M3[above] - magnitude, magnitude - E4M3[below]
    nearest = np.where((down < up) | ((down == up) & (below % 2 == 0)), below, above)
    codes = np.where(np.isnan(values), 127, nearest)
    signs = np.where(np.signbit(values), 128, 0)
    coded: NDArray[np.uint8] = (codes | signs).astype(np.uint8)
    return coded


def decode_values(codes: NDArray[np.uint8], codec: str) -> Floats:
    if codec == "int8":
        return codes.view(np.int8).astype(np.float32)
    values = np.append(E4M3, np.nan)[codes & 0x7F]
    return np.where(codes & 0x80, -values, values).astype(np.float32)


def encode_row(values: Floats, codec: str) -> tuple[NDArray[np.uint8], np.float32]:
    """Codes ``[items]`` and what they are multiplied by."""
    finite = np.abs(values[np.isfinite(values)])
    largest = finite.max() if len(finite) else np.float32(0)
    if largest < TINY:
        up = down = np.float32(0)
    else:
        up = np.float32(largest / np.float32(LARGEST[codec]))
        down = np.float32(np.float32(1) / up)
    with np.errstate(invalid="ignore", over="ignore"):
        return encode_values(values * down, codec), up


def coded_bytes(rows: int, items: int) -> int:
    return -(-rows * items // 16) * 16 + rows * 4


def coded_places(count: int, items: int, number: int) -> tuple[int, int]:
    """Where in a coded chunk of ``count`` rows the codes and the scale of a row begin."""
    return number * items, -(-count * items // 16) * 16 + number * 4


def gather_coded(
    paged: Paged,
    slots: NDArray[np.int64],
    chunks: NDArray[np.uint64],
    order: str,
    dtype: str,
    codec: str,
) -> None:
    for row, count, items in _coded_rows(paged, slots, order, dtype):
        codes, up = encode_row(read_items(_load(paged, row, dtype), dtype), codec)
        at, scale = coded_places(count, items, row.number)
        ctypes.memmove(int(chunks[row.chunk]) + at, codes.tobytes(), items)
        ctypes.memmove(int(chunks[row.chunk]) + scale, up.tobytes(), 4)


def scatter_coded(
    paged: Paged,
    slots: NDArray[np.int64],
    chunks: NDArray[np.uint64],
    order: str,
    dtype: str,
    codec: str,
) -> None:
    for row, count, items in _coded_rows(paged, slots, order, dtype):
        at, scale = coded_places(count, items, row.number)
        codes = np.frombuffer(ctypes.string_at(int(chunks[row.chunk]) + at, items), np.uint8)
        up = np.frombuffer(ctypes.string_at(int(chunks[row.chunk]) + scale, 4), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            values = decode_values(codes, codec) * up
        _store(paged, row, dtype, write_items(values.astype(np.float32), dtype))


def _coded_rows(
    paged: Paged, slots: NDArray[np.int64], order: str, dtype: str
) -> list[tuple[Row, int, int]]:
    items = paged.head_bytes // ITEM_BYTES[dtype]
    count = len(paged.k_bases) * len(paged.planes()) * paged.kv_heads * slots.shape[1]
    return [(row, count, items) for row in rows(paged, slots, order)]


def _addresses(paged: Paged, row: Row, dtype: str) -> list[int]:
    size = ITEM_BYTES[dtype]
    if paged.items == 1:
        start = paged.address(row.layer, row.plane, row.slot, row.head)
        return [start + i * size for i in range(paged.head_bytes // size)]
    return [
        paged.address(row.layer, row.plane, row.slot, row.head, item) for item in range(paged.items)
    ]


def _load(paged: Paged, row: Row, dtype: str) -> bytes:
    return b"".join(ctypes.string_at(a, ITEM_BYTES[dtype]) for a in _addresses(paged, row, dtype))


def _store(paged: Paged, row: Row, dtype: str, raw: bytes) -> None:
    size = ITEM_BYTES[dtype]
    for i, address in enumerate(_addresses(paged, row, dtype)):
        ctypes.memmove(address, raw[i * size : (i + 1) * size], size)

"""Bad descriptors and arguments of every kind: an exception each time, never a crash.

Memory is there for the whole of what a good descriptor may reach; a bad one must be refused before
a byte moves, or stay within it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache_core import _native
from tests.cache_core.paged_world import random_bytes, u64

SIZE = 1 << 16
ENGINE, CHUNKS = random_bytes(SIZE, 1), random_bytes(SIZE, 2)
BASE, THERE = ENGINE.ctypes.data, CHUNKS.ctypes.data

# Sound values, of which each draw spoils some.
GOOD: dict[str, Any] = {
    "k_bases": u64(BASE, BASE + 4096), "v_bases": u64(BASE + 8192, BASE + 12288),
    "block_tokens": 4, "block_stride": 512, "token_stride": 128, "head_stride": 64, "kv_heads": 2,
    "head_bytes": 64, "num_slots": 32,
}  # fmt: skip
WHOLE = st.sampled_from(
    [-(2**63), -1, 0, 1, 2, 3, 64, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1]
) | st.integers(-300, 300)
ADDRESSES = st.lists(
    st.sampled_from([0, 1, 4095, 2**63, 2**64 - 1, BASE, BASE + 64, BASE + 4096]), max_size=3
).map(lambda values: u64(*values))
SPOILT = st.fixed_dictionaries(
    {},
    optional={
        **{name: WHOLE for name in GOOD if not name.endswith("bases")},
        **dict.fromkeys(("item_bytes", "item_stride", "v_token_stride", "v_item_stride"), WHOLE),
        "k_bases": ADDRESSES,
        "v_bases": ADDRESSES,
    },
)  # fmt: skip
REFUSED = (ValueError, IndexError, TypeError, MemoryError)
FITS = {"block_stride": 512, "token_stride": 128, "head_stride": 64}


def stays_inside(arguments: dict[str, Any]) -> bool:
    """Whether a descriptor that was taken reaches no byte beyond ENGINE: no verb can know that."""
    items = arguments["head_bytes"] // (arguments.get("item_bytes") or arguments["head_bytes"])
    blocks = -(-arguments["num_slots"] // arguments["block_tokens"])
    tokens = min(arguments["block_tokens"], arguments["num_slots"])
    reach = arguments["head_bytes"] + (blocks - 1) * arguments["block_stride"]
    reach += (tokens - 1) * max(arguments["token_stride"], arguments.get("v_token_stride") or 0)
    reach += (arguments["kv_heads"] - 1) * arguments["head_stride"]
    reach += (items - 1) * max(
        arguments.get("item_stride") or arguments.get("item_bytes") or 0,
        arguments.get("v_item_stride") or 0,
    )
    bases = [int(b) for b in (*arguments["k_bases"], *arguments["v_bases"])]
    known = [b for b in bases if b >= 4096]  # smaller ones are refused by a move
    layers = len(arguments["k_bases"]) * (2 if len(arguments["v_bases"]) else 1)
    chunk = layers * 4 * arguments["kv_heads"] * (arguments["head_bytes"] + 20)
    return chunk <= SIZE // 4 and all(b >= BASE and b + reach <= BASE + SIZE for b in known)


def verbs() -> dict[str, Any]:
    return {
        "gather": lambda p, s, c: _native.gather(p, s, c, "HND"),
        "scatter": lambda p, s, c: _native.scatter(p, s, c, "NHD"),
        "gather_coded": lambda p, s, c: _native.gather_coded(p, s, c, "NHD", "float16", "fp8"),
        "scatter_coded": lambda p, s, c: _native.scatter_coded(p, s, c, "HND", "float32", "int8"),
    }


SLOTS = st.lists(
    st.sampled_from([-1, 0, 1, 2, 3, 5, 30, 31, 32, -2, 2**31, 2**63 - 1, -(2**63)])
    | st.integers(0, 31),
    min_size=8, max_size=8,
)  # fmt: skip
PLACES = st.lists(
    st.sampled_from([0, 8, 2**63, 2**64 - 1, THERE, THERE + 16, THERE + SIZE // 2]),
    min_size=2, max_size=2,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(verbs()))
@settings(max_examples=400, suppress_health_check=[HealthCheck.filter_too_much])
@given(spoilt=SPOILT, slots=SLOTS, chunks=PLACES)
def test_bad_descriptors(
    name: str, spoilt: dict[str, Any], slots: list[int], chunks: list[int]
) -> None:
    arguments = GOOD | spoilt
    try:
        paged = _native.Paged(**arguments)
    except REFUSED:
        return
    if not stays_inside(arguments):
        return
    table = np.array(slots, dtype=np.int64).reshape(2, 4)
    try:
        verbs()[name](paged, table, u64(*chunks))
    except REFUSED:
        return
    assert not ((table < -1) | (table >= arguments["num_slots"])).any()


@pytest.mark.parametrize("name", sorted(verbs()))
def test_sound_arguments_are_taken(name: str) -> None:
    """What the fuzzing spoils is sound to begin with."""
    table = np.array([[0, 1, -1, 3], [31, 30, 9, 4]])
    verbs()[name](_native.Paged(**GOOD), table, u64(THERE, THERE + SIZE // 2))


@pytest.mark.parametrize(
    ("change", "overlaps"),
    [
        ({}, False),
        ({"token_stride": 127}, True),
        ({"head_stride": 63}, True),
        ({"block_stride": 511}, True),
        ({"v_bases": GOOD["k_bases"]}, True),
        # Fused K|V, [NB, 2, ...] and heads of K and V in turn: planes interleave.
        ({"v_bases": GOOD["k_bases"] + np.uint64(64), "head_stride": 128, "token_stride": 256,
          "block_stride": 1024, "num_slots": 16}, False),
        ({"v_bases": GOOD["k_bases"] + np.uint64(63), "head_stride": 128, "token_stride": 256,
          "block_stride": 1024, "num_slots": 16}, True),
        ({"v_bases": GOOD["k_bases"] + np.uint64(512), "block_stride": 1024, "num_slots": 16},
         False),
        ({"v_bases": GOOD["k_bases"] + np.uint64(448), "block_stride": 1024, "num_slots": 16},
         True),
        ({"v_bases": u64()}, False),
        ({"num_slots": 0, "token_stride": 0}, False),
        ({"num_slots": 2, "block_stride": 0}, False),
    ],
)  # fmt: skip
def test_overlap_is_found(change: dict[str, Any], overlaps: bool) -> None:
    arguments = GOOD | change
    paged = _native.Paged(**arguments)
    assert paged.overlaps == overlaps
    slots = np.arange(min(2, arguments["num_slots"]), dtype=np.int64)[:, None]
    chunks = (np.uint64(THERE) + np.arange(2, dtype=np.uint64) * np.uint64(4096))[: len(slots)]
    _native.gather(paged, slots, chunks, "HND")
    if overlaps:
        with pytest.raises(ValueError, match="share bytes"):
            _native.scatter(paged, slots, chunks, "HND")
    else:
        _native.scatter(paged, slots, chunks, "HND")


@pytest.mark.parametrize(
    ("slots", "chunks", "name", "text"),
    [
        ([[0, 1], [2, 1]], [0, 8192], "scatter", "slot 1 is in slots twice"),
        ([[0, 1], [2, 3]], [0, 1023], "gather", r"chunks\[1\] overlaps chunks\[0\]"),
        ([[0, 1], [2, 3]], [-THERE, 8192], "gather", r"chunks\[0\] is at 0"),
    ],
)
def test_bad_moves_are_named(
    slots: list[list[int]], chunks: list[int], name: str, text: str
) -> None:
    there = u64(*(THERE + at for at in chunks))
    with pytest.raises(ValueError, match=text):
        getattr(_native, name)(_native.Paged(**GOOD), np.array(slots), there, "HND")


@given(
    dst=st.sampled_from([0, 7, THERE, THERE + 4, 2**63, 2**64 - 1]),
    src=st.sampled_from([0, 7, BASE, BASE + 4, 2**63, 2**64 - 1]),
    size=st.sampled_from([0, 1, 64, SIZE // 2, 2**62, 2**63, 2**64 - 1]),
    count=st.integers(0, 3),
)
def test_bad_copies(dst: int, src: int, size: int, count: int) -> None:
    try:
        _native.copy(u64(*[dst] * count), u64(*[src] * count), u64(*[size] * count), 2)
    except ValueError:
        return
    assert count == 0 or size == 0 or (count == 1 and size <= SIZE)


@given(
    rows=WHOLE, items=WHOLE, dtype=st.sampled_from(["float32", "bfloat16", "int8", ""]),
    codec=st.sampled_from(["fp8", "int8", "fp4"]), decode=st.booleans(),
    places=st.lists(st.sampled_from([0, 9, THERE, THERE + 64, BASE]), max_size=2),
)  # fmt: skip
def test_bad_codings(
    rows: int, items: int, dtype: Any, codec: Any, decode: bool, places: list[int]
) -> None:
    verb = _native.decode if decode else _native.encode
    if rows > 0 and items > 0 and rows * (items + 20) * 4 > SIZE // 2:
        places = [0] * len(places)  # no verb can know how much memory there is
    try:
        verb(u64(*places), u64(*[BASE] * len(places)), rows, items, dtype, codec)
    except REFUSED:
        return
    assert rows > 0 and items > 0 and codec != "fp4" and dtype not in ("int8", "")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"order": "DNH"}, ValueError, "order is 'DNH'"),
        ({"dtype": "int8"}, ValueError, "dtype is 'int8'"),
        ({"codec": "fp4"}, ValueError, "codec is 'fp4'"),
        ({"chunks": u64(1)}, ValueError, "chunks has 1 entries where 2"),
        ({"slots": np.zeros((2, 4), np.int32)}, TypeError, "int64"),
    ],
)
def test_coding_refuses(change: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {
        "slots": np.array([[0, 1, 2, 3], [4, 5, 6, 7]]),
        "chunks": u64(THERE, THERE + 8192), "order": "HND", "dtype": "bfloat16",
        "codec": "fp8",
    }  # fmt: skip
    with pytest.raises(error, match=text):
        _native.scatter_coded(_native.Paged(**GOOD), **arguments | change)

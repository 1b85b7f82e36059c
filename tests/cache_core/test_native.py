"""The native verbs that hash and that move paged KV, against ``_reference``, and their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_core import _native
from tests.cache_core import reference as _reference
from tests.cache_core.paged_world import Order, World, large, scattered, u64, worlds

ZERO = bytes(32)


@given(
    tokens=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=150),
    chunk_tokens=st.integers(1, 40),
    root=st.binary(min_size=32, max_size=32),
    namespace=st.binary(min_size=32, max_size=32),
    content=st.booleans(),
    portable=st.booleans(),
)
def test_chunk_keys(
    tokens: list[int],
    chunk_tokens: int,
    root: bytes,
    namespace: bytes,
    content: bool,
    portable: bool,
) -> None:
    array = np.array(tokens, dtype=np.int32)
    got = _native.chunk_keys(array, chunk_tokens, root, namespace, content, portable)
    assert got == _reference.chunk_keys(array, chunk_tokens, root, namespace, content)


@pytest.mark.parametrize("portable", [False, True])
def test_keys_stay_what_they_are(portable: bool) -> None:
    """Other processes and hosts, of other versions, have stored bytes under these."""
    tokens = np.arange(128, dtype=np.int32)
    tokens.flags.writeable = False
    prefix, content = _native.chunk_keys(tokens, 64, ZERO, b"\x01" * 32, portable=portable)
    assert [key.hex() for key in prefix + content] == KEYS


KEYS = [
    "2e991e4ab5a874f5988b4a8542125d3062c507bef36d68feadae8effbef09fbc",
    "22019833ba75ef2e6b778a23d81c778789e0d13559c28ed5d50d69add25378dc",
    "916fd83307dba6d9dda99ba114db60fa28760758463022e082991a956718d14b",
    "e3be4d9867b015f2b211ad8cf6bd423b3dd1bbfe947b36c9354c6e2b7388ff65",
]


def test_domains_and_backend() -> None:
    assert _native.PREFIX_DOMAIN == _reference.PREFIX_DOMAIN
    assert _native.CONTENT_DOMAIN == _reference.CONTENT_DOMAIN
    flags = Path("/proc/cpuinfo")
    if flags.exists() and " sha_ni" in flags.read_text():
        assert _native.sha256_backend() == "sha-ni"
    else:
        assert _native.sha256_backend() in ("sha-ni", "portable")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((np.zeros(4, np.int32), 0, ZERO, ZERO), ValueError, "chunk_tokens is 0"),
        ((np.zeros(4, np.int32), 2, b"x", ZERO), ValueError, "root has 1 bytes"),
        ((np.zeros(4, np.int32), 2, ZERO, b""), ValueError, "namespace has 0 bytes"),
        ((np.zeros(4, np.int64), 2, ZERO, ZERO), TypeError, "int32"),
        ((np.zeros(8, np.int32)[::2], 2, ZERO, ZERO), TypeError, "order='C'"),
        ((np.zeros((2, 2), np.int32), 2, ZERO, ZERO), TypeError, "int32"),
    ],
)
def test_chunk_keys_refuses(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        _native.chunk_keys(*arguments)


@given(worlds(), st.sampled_from(["gather", "scatter"]), st.sampled_from(["HND", "NHD"]))
def test_moves_of_any_layout(world: World, name: str, order: Order) -> None:
    world.check(name, order, threads=1)


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_two_tokens_that_are_a_whole_chunk_but_not_one_run(name: str) -> None:
    """Heads of two tokens touch in blocks and in chunks of two tokens, and yet a run of one token
    has its heads apart."""
    blocks = _reference.Paged(
        *(u64(0), u64(48)),
        *(2, 16, 4, 8),
        kv_heads=2,
        head_bytes=4,
        num_slots=6,
    )
    world = World(blocks, np.array([[5, 3]]), u64(1), engine_bytes=96, chunk_bytes=34)
    world.check(name, "HND", threads=1)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["gather", "scatter"])
@pytest.mark.parametrize(
    ("engine", "order", "offset", "head_bytes"),
    [("HND", "HND", 0, 512), ("NHD", "NHD", 13, 500), ("NHD", "HND", 1, 1030)],
)
def test_large_moves(
    engine: Order, order: Order, offset: int, head_bytes: int, name: str, threads: int
) -> None:
    """Enough for several threads and for stores that go around the cache, at any alignment."""
    large(engine, 16, offset, head_bytes).check(name, order, threads)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["gather", "scatter"])
@pytest.mark.parametrize("side_by_side", [True, False])
@pytest.mark.parametrize(
    ("token_bytes", "block_tokens", "offset", "part"),
    [(600, 1, 0, 1), (2048, 1, 0, 1), (2048, 1, 24, 4), (1500, 3, 7, 1), (4096, 16, 0, 4)],
)
def test_scattered_blocks(
    token_bytes: int,
    block_tokens: int,
    offset: int,
    part: int,
    side_by_side: bool,
    name: str,
    threads: int,
) -> None:
    """Past the caches: a gather sorts what it reads; pieces short and long, aligned and not."""
    world = scattered(token_bytes, block_tokens, offset, side_by_side=side_by_side, part=part)
    world.check(name, "NHD", threads)


@pytest.mark.parametrize("name", ["gather", "scatter"])
@pytest.mark.parametrize("bad", [-2, 16 * 96, 2**62, -(2**63)])
def test_a_bad_slot_moves_nothing(name: str, bad: int) -> None:
    world = large("HND", 16)
    before = world.run(lambda *_: None, _native)
    world.slots[15, 95] = bad

    def refused(*arguments: Any) -> None:
        with pytest.raises(IndexError, match=rf"slots\[15, 95\] is {bad}: .* 0 to 1535"):
            getattr(_native, name)(*arguments)

    assert world.run(refused, _native, "HND", 2) == before


PAGED: dict[str, Any] = {
    "k_bases": u64(0), "v_bases": u64(8), "block_tokens": 1, "block_stride": 8, "token_stride": 8,
    "head_stride": 8, "kv_heads": 1, "head_bytes": 8, "num_slots": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"k_bases": u64()}, "k_bases"),
        ({"v_bases": u64(1, 2)}, "v_bases"),
        ({"block_tokens": 0}, "block_tokens"),
        ({"kv_heads": 0}, "kv_heads"),
        ({"head_bytes": 0}, "head_bytes"),
        ({"num_slots": -1}, "num_slots"),
        ({"token_stride": -8}, "strides"),
    ],
)
def test_paged_refuses(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"Paged: {text}"):
        _native.Paged(**PAGED | change)


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_moves_refuse(name: str) -> None:
    verb, paged = getattr(_native, name), _native.Paged(**PAGED)
    none, slots = np.empty((0, 4), np.int64), np.full((2, 4), -1, np.int64)
    verb(paged, none, u64(), "HND", 4)
    verb(paged, slots, u64(0, 0), "NHD", 4)
    with pytest.raises(ValueError, match="chunks has 1 entries where 2 are needed"):
        verb(paged, slots, u64(0), "HND", 1)
    with pytest.raises(ValueError, match="order is 'DNH'"):
        verb(paged, slots, u64(0, 0), "DNH", 1)
    with pytest.raises(TypeError):
        verb(paged, slots.astype(np.int32), u64(0, 0), "HND", 1)

"""Holds all shape knowledge about KV: what one chunk is, in tokens and in bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Order = Literal["HND", "NHD"]

ITEM_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
}


@dataclass(frozen=True, slots=True)
class KVLayout:
    """The KV that one model keeps, cut into chunks of ``chunk_tokens`` tokens.

    A chunk holds all layers. Its bytes are, in C order, ``[layers, planes, kv_heads, chunk_tokens,
    head_dim]`` for order ``HND`` and ``[layers, planes, chunk_tokens, kv_heads, head_dim]`` for
    ``NHD``. An engine picks the order that matches its own memory, so that moves are long runs; the
    order is part of the fingerprint, so chunks of two orders never mix.

    ``planes`` is 2 (K and V) for GQA/MHA and 1 for MLA, whose single plane is the latent with the
    RoPE part after it (``kv_heads=1``, ``head_dim=latent+rope``; see :meth:`mla`).

    Raises ``ValueError`` for sizes below 1 and for a dtype whose size is not known.
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    chunk_tokens: int
    planes: int = 2
    order: Order = "HND"

    def __post_init__(self) -> None:
        for name in ("layers", "kv_heads", "head_dim", "chunk_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"KVLayout.{name} is {getattr(self, name)}; it must be at least 1")
        if self.dtype not in ITEM_BYTES:
            known = ", ".join(ITEM_BYTES)
            raise ValueError(f"KV dtype {self.dtype!r} is not known; use one of {known}")
        if self.planes not in (1, 2):
            raise ValueError(f"KVLayout.planes is {self.planes}; it is 2 (K and V) or 1 (MLA)")
        if self.order not in ("HND", "NHD"):
            raise ValueError(f"KVLayout.order is {self.order!r}; it is 'HND' or 'NHD'")

    @classmethod
    def mla(
        cls, layers: int, latent_dim: int, rope_dim: int, dtype: str, chunk_tokens: int
    ) -> KVLayout:
        """Returns the layout of a multi-head latent attention model (DeepSeek-V2, section 2.1)."""
        return cls(layers, 1, latent_dim + rope_dim, dtype, chunk_tokens, planes=1)

    @property
    def head_bytes(self) -> int:
        """Returns the bytes of one head of one token in one plane of one layer."""
        return self.head_dim * ITEM_BYTES[self.dtype]

    @property
    def token_bytes(self) -> int:
        """Returns the bytes of KV that one token keeps, over all layers."""
        return self.layers * self.planes * self.kv_heads * self.head_bytes

    @property
    def chunk_bytes(self) -> int:
        """Returns the bytes of one full chunk, over all layers."""
        return self.token_bytes * self.chunk_tokens

    @property
    def chunk_shape(self) -> tuple[int, int, int, int, int]:
        """Returns the shape of a chunk in items: ``[layers, planes, kv_heads, chunk_tokens,
        head_dim]``, for ``NHD`` with ``chunk_tokens`` before ``kv_heads``."""
        if self.order == "HND":
            return (self.layers, self.planes, self.kv_heads, self.chunk_tokens, self.head_dim)
        return (self.layers, self.planes, self.chunk_tokens, self.kv_heads, self.head_dim)

    def fields(self) -> dict[str, str]:
        """Returns every field as text: this is what salts the keys (see :class:`Namespace`)."""
        return {name: str(value) for name, value in asdict(self).items()}


Keeps = Literal["all", "window", "local", "state"]


@dataclass(frozen=True, slots=True)
class Group:
    """Layers of a model that keep the same thing of a prompt, with blocks of one length.

    A chunk of a group is a chunk of its own for tiers and ledger: the same prompt under another
    name (:meth:`name`). ``keeps`` says what attention still reads behind a prompt of n tokens:
    ``"all"`` of them; a sliding ``"window"`` of ``span`` tokens; ``"local"`` attention, whose spans
    of ``span`` tokens begin at its multiples; or the one ``"state"`` that a recurrent layer has
    there, which says nothing of other places. ``block_tokens`` is the length of the engine's blocks
    in tokens, ``chunk_bytes`` the bytes of one chunk of the group over all its layers on one rank.

    Raises ``ValueError`` where ``span`` is missing, or given for a group that has none.
    """

    number: int
    layers: tuple[str, ...]
    block_tokens: int
    chunk_bytes: int
    keeps: Keeps = "all"
    span: int | None = None

    def __post_init__(self) -> None:
        if (self.keeps in ("window", "local")) != (self.span is not None and self.span > 0):
            raise ValueError(f"a group of layers that keeps {self.keeps!r} has span {self.span}")

    def needed(self, chunks: int, chunk_tokens: int) -> range:
        """Returns which chunks of this group a hit of ``chunks`` leading chunks has to have."""
        if self.keeps == "state":
            return range(max(0, chunks - 1), chunks)
        if self.span is None:
            return range(chunks)
        tokens = chunks * chunk_tokens
        if self.keeps == "window":
            first = max(0, tokens - (self.span - 1))
        else:
            first = tokens // self.span * self.span
        return range(min(chunks, first // chunk_tokens), chunks)

    def name(self, key: bytes) -> bytes:
        """Returns the name of this group's chunk where the prompt's chunk has the key ``key``."""
        tail = int.from_bytes(key[-2:], "big") ^ self.number
        return key if self.number == 0 else key[:-2] + tail.to_bytes(2, "big")


def reach(
    keys: Sequence[bytes],
    groups: Sequence[Group],
    chunk_tokens: int,
    held: Callable[[bytes], bool],
    known: int = 0,
) -> int:
    """Returns the most leading chunks of ``keys`` of which each group has what it needs.

    ``held`` tells of a group's chunk by its name. Each name is asked for at most once, and none of
    the first ``known`` chunks, of which the engine itself has what is needed.
    """
    longest = len(keys)
    for group in groups:
        if group.keeps == "all":
            names = (group.name(key) for key in keys[known:longest])
            longest = next((n for n, name in enumerate(names, known) if not held(name)), longest)
    rest = [group for group in groups if group.keeps != "all"]
    seen: dict[bytes, bool] = {}

    def has(name: bytes) -> bool:
        if name not in seen:
            seen[name] = held(name)
        return seen[name]

    while longest > known and not all(
        has(group.name(keys[chunk]))
        for group in rest
        for chunk in reversed(group.needed(longest, chunk_tokens))
        if chunk >= known
    ):
        longest -= 1
    return longest


Addresses = NDArray[np.uint64]

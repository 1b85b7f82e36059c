"""Holds a trace as the simulator sees it: which chunks each request uses, in arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cache_core import _native

Naming = Literal["prefix", "content"]
Numbers = NDArray[np.int64]


def _numbers(values: Any) -> Numbers:
    return np.ascontiguousarray(values, dtype=np.int64)


@dataclass(frozen=True)
class AccessTrace:
    """The chunks that requests use. ``ids`` int64 ``[references]``: names of chunks, request after
    request, in prompt order; any numbers. Request i has ``ids[offsets[i]:offsets[i + 1]]``,
    ``offsets`` int64 ``[requests + 1]``. ``naming`` says what a name stands for: the ``prefix``
    that ends with the chunk (a chained hash), or the chunk's own ``content``.

    ``prompt_tokens`` int64 ``[requests]`` cut the last chunk of each request where they say so;
    without them every chunk has ``chunk_tokens``. ``arrivals`` float64 ``[requests]`` are seconds,
    in order. Raises ``ValueError`` for arrays that do not fit each other.
    """

    ids: Numbers
    offsets: Numbers
    chunk_tokens: int = 1
    naming: Naming = "prefix"
    prompt_tokens: Numbers | None = None
    arrivals: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        lengths = np.diff(self.offsets)
        if len(self.offsets) == 0 or self.offsets[0] != 0 or (lengths < 0).any():
            raise ValueError("offsets must start at 0 and never fall")
        if self.offsets[-1] != len(self.ids):
            raise ValueError(f"offsets end at {self.offsets[-1]}, ids at {len(self.ids)}")
        if self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {self.chunk_tokens}; it must be at least 1")
        if self.naming not in ("prefix", "content"):
            raise ValueError(f"naming {self.naming!r} is not known; use prefix or content")
        for name in ("prompt_tokens", "arrivals"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self):
                raise ValueError(f"{name} has {len(values)} entries for {len(self)} requests")

    def __len__(self) -> int:
        """Returns the number of requests."""
        return len(self.offsets) - 1

    @classmethod
    def of(
        cls,
        requests: Iterable[Sequence[int]],
        chunk_tokens: int = 1,
        naming: Naming = "prefix",
        prompt_tokens: Sequence[int] | None = None,
        arrivals: Sequence[float] | None = None,
    ) -> AccessTrace:
        """Makes a trace from one sequence of names per request."""
        rows = [_numbers(request) for request in requests]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        return cls(
            np.concatenate([*rows, _numbers([])]),
            offsets,
            chunk_tokens,
            naming,
            None if prompt_tokens is None else _numbers(prompt_tokens),
            None if arrivals is None else np.asarray(arrivals, dtype=np.float64),
        )

    @cached_property
    def distinct(self) -> int:
        """Returns the number of distinct chunks."""
        return len(np.unique(self.ids))

    @property
    def tokens(self) -> int:
        """Returns the number of tokens of all prompts, also of what no full chunk holds."""
        if self.prompt_tokens is None:
            return len(self.ids) * self.chunk_tokens
        return int(self.prompt_tokens.sum())

    def prefixes(self) -> AccessTrace:
        """Returns the trace with prefixes as names: requests share one if all up to it is equal."""
        if self.naming == "prefix":
            return self
        chained = _native.chain_names(self.ids, self.offsets)
        return replace(self, ids=chained, naming="prefix")

    def merged(self, group: int) -> AccessTrace:
        """Returns the trace with chunks of ``group`` times the length. What does not fill one is no
        chunk any more, but stays in the prompt. Raises ``ValueError`` if ``group`` < 1."""
        if group == 1:
            return self
        ids = _native.group_names(self.ids, self.offsets, group, self.naming == "prefix")
        lengths = np.diff(self.offsets)
        offsets = np.zeros_like(self.offsets)
        np.cumsum(lengths // group, out=offsets[1:])
        prompts = self.prompt_tokens
        if prompts is None:
            prompts = lengths * self.chunk_tokens
        return replace(
            self,
            ids=ids,
            offsets=offsets,
            chunk_tokens=self.chunk_tokens * group,
            prompt_tokens=prompts,
        )

    def sampled(self, rate: float, seed: int = 0) -> AccessTrace:
        """Returns the trace of only those chunks whose hash falls into ``rate`` of all hashes: all
        of a chunk's uses or none. Prompts' lengths are left out: they belong to the whole."""
        kept = _native.sampled(self.ids, threshold(rate), seed)
        counts = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
        return replace(
            self, ids=self.ids[kept], offsets=_numbers(counts[self.offsets]), prompt_tokens=None
        )

    def first(self, requests: int) -> AccessTrace:
        """Returns the trace of so many leading requests; all, if there are fewer."""
        offsets = self.offsets[: requests + 1]
        prompts, arrivals = self.prompt_tokens, self.arrivals
        return replace(
            self,
            ids=self.ids[: offsets[-1]],
            offsets=offsets,
            prompt_tokens=None if prompts is None else prompts[:requests],
            arrivals=None if arrivals is None else arrivals[:requests],
        )

    def ledger_keys(self) -> list[list[bytes]]:
        """Returns each request's chunks as the Ledger names them: 32 bytes each."""
        made = {i: i.to_bytes(32, "little", signed=True) for i in map(int, np.unique(self.ids))}
        names = [made[i] for i in self.ids.tolist()]
        return [names[a:b] for a, b in pairwise(self.offsets.tolist())]


def threshold(rate: float) -> int:
    """Returns the largest of 64-bit hashes that a sample of ``rate`` takes. Raises ``ValueError``
    for a rate outside (0, 1]."""
    if not 0 < rate <= 1:
        raise ValueError(f"a sampling rate of {rate} is not possible; it must be in (0, 1]")
    return (1 << 64) - 1 if rate == 1 else int(rate * 2**64)

"""What the scheduler's half knows of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cache_core.keys import ChunkHasher

if TYPE_CHECKING:
    from cache_core.adapters.vllm.blending import Blended


@dataclass(slots=True)
class Tracked:
    """``request`` is vLLM's own object, which grows as tokens are generated. ``saved`` counts its
    leading chunks that were given to the Ledger since the last failed load, ``used`` since it
    came. ``epoch`` counts failed loads: what was computed on top of one is not saved."""

    request: Any
    hasher: ChunkHasher
    keys: list[bytes] = field(default_factory=list)
    saved: int = 0
    used: int = 0
    epoch: int = 0
    jobs: set[int] = field(default_factory=set)
    computed: int = 0
    """Tokens that vLLM's own prefix cache had at the latest look-up."""
    hits: dict[str, int] | None = None
    """Prompt tokens by tier, at the request's first scheduling."""
    waiting_since: float | None = None
    out: frozenset[int] = frozenset()
    """Tiers that the latest look-up left out."""
    blend: Blended | None = None

    def upto(self, tokens: int) -> list[bytes]:
        """Prefix keys of the full chunks of the first ``tokens`` tokens."""
        size = self.hasher.chunk_tokens
        have, want = len(self.keys), tokens // size
        if want > have:
            new = np.array(self.request.all_token_ids[have * size : want * size], dtype=np.int32)
            after = self.keys[-1] if have else None
            self.keys += self.hasher.keys(new, after=after).prefix
        return self.keys[:want]

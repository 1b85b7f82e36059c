"""What serving costs, as a formula: the clock of the simulated engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TierCost:
    """Loading ``nbytes`` in n chunks takes ``call_s + n * fixed_s + nbytes / bytes_per_s``."""

    bytes_per_s: float
    fixed_s: float = 0.0
    call_s: float = 0.0

    def seconds(self, chunks: int, nbytes: float) -> float:
        """For ``nbytes`` in ``chunks``; 0 for none."""
        if not chunks:
            return 0.0
        return self.call_s + chunks * self.fixed_s + nbytes / self.bytes_per_s


def _tiers() -> Mapping[str, TierCost]:
    return {
        "device": TierCost(12e9, 1e-6),
        "cpu": TierCost(8e9, 2e-6),
        "disk": TierCost(1.5e9, 100e-6),
        "remote": TierCost(0.8e9, 500e-6),
    }


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds for each part of a request.

    Prefill of n tokens behind m cached ones: ``a + b n + c n (m + n/2)``: a per forward, b per
    token in the dense layers, c per query-key pair in attention. The defaults are a fit to
    SmolLM2-135M in float32 on two cores of an EPYC 9004 (docs/log.md); they make the simulator
    plausible, not true: ``lmcache probe --model`` measures those of this machine.
    """

    a: float = 0.03
    b: float = 1.5e-3
    c: float = 5.7e-7
    decode_s: float = 0.06
    decode_token_s: float = 0.0
    """A decode step's further time per token in front of it."""
    tiers: Mapping[str, TierCost] = field(default_factory=_tiers)

    def prefill_s(self, new: int, cached: int) -> float:
        """Time to the first token's logits, KV of ``cached`` tokens in place."""
        return self.a + self.b * new + self.c * new * (cached + new / 2)

    def load_s(self, tier: str, chunks: int, chunk_bytes: int) -> float:
        """Time to bring ``chunks`` chunks from a tier into the engine."""
        return self.tiers[tier].seconds(chunks, chunks * chunk_bytes)

    def step_s(self, there: int) -> float:
        """One decode step behind ``there`` tokens."""
        return self.decode_s + self.decode_token_s * there

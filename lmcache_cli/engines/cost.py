"""What serving costs, as a formula: the clock of the simulated engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TierCost:
    """Loading n chunks of b bytes takes ``n * fixed_s + n * b / bytes_per_s`` seconds."""

    fixed_s: float
    bytes_per_s: float


def _tiers() -> Mapping[str, TierCost]:
    return {
        "device": TierCost(1e-6, 12e9),
        "cpu": TierCost(2e-6, 8e9),
        "disk": TierCost(100e-6, 1.5e9),
        "remote": TierCost(500e-6, 0.8e9),
    }


@dataclass(frozen=True, slots=True)
class CostModel:
    """Seconds for each part of a request.

    Prefill of n tokens behind m cached ones: ``a + b n + c n (m + n/2)``: a per forward, b per
    token in the dense layers, c per query-key pair in attention. The defaults are a fit to
    SmolLM2-135M in float32 on two cores of an EPYC 9004 (docs/log.md); they make the simulator
    plausible, not true: give measured ones for any other machine.
    """

    a: float = 0.03
    b: float = 1.5e-3
    c: float = 5.7e-7
    decode_s: float = 0.06
    tiers: Mapping[str, TierCost] = field(default_factory=_tiers)

    def prefill_s(self, new: int, cached: int) -> float:
        """Time to the first token's logits, KV of ``cached`` tokens in place."""
        return self.a + self.b * new + self.c * new * (cached + new / 2)

    def load_s(self, tier: str, chunks: int, chunk_bytes: int) -> float:
        """Time to bring ``chunks`` chunks from a tier into the engine."""
        cost = self.tiers[tier]
        return chunks * (cost.fixed_s + chunk_bytes / cost.bytes_per_s)

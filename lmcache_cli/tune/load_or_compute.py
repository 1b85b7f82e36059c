"""For each tier: is it faster to load a hit, or to compute it again?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmcache_cli.tune.candidates import StackOutcome, TierConfiguration
from lmcache_cli.tune.study import Study


@dataclass(frozen=True, slots=True)
class LoadOrCompute:
    """A typical hit of one tier: ``tokens`` (the median of the requests that have one, or a mean
    prompt where none has), loaded in ``load_s`` or computed in ``compute_s``. Below
    ``break_even_bytes_s`` computing wins; None if no bandwidth is enough, because the fixed costs
    of loading alone take longer."""

    tier: str
    tokens: int
    load_s: float
    compute_s: float
    bytes_per_s: float
    break_even_bytes_s: float | None

    @property
    def loads(self) -> bool:
        """Returns whether loading is faster than computing."""
        return self.load_s < self.compute_s

    def text(self) -> str:
        """Describes the choice between loading and computing in words."""
        ms = f"{1e3 * self.load_s:,.3g} ms against {1e3 * self.compute_s:,.3g} ms"
        what = "load" if self.loads else "recompute"
        if self.break_even_bytes_s is None:
            even = "no bandwidth would make up for the fixed cost of a load"
        else:
            even = f"break-even at {self.break_even_bytes_s / 1e9:.3g} GB/s"
        return (
            f"{self.tier}: {what} ({ms} for {self.tokens:,} tokens at"
            f" {self.bytes_per_s / 1e9:.3g} GB/s; {even})"
        )


def load_or_compute(study: Study, chosen: StackOutcome) -> list[LoadOrCompute]:
    """Compares loading with computing for every tier that the costs know, in the chosen stack or
    not."""
    stack, cost = chosen.stack, study.cost
    hits = study.hits(stack)
    names = [name for name, _ in stack.tiers]
    found = []
    for name, tier in cost.tiers.items():
        tokens = _typical(study, stack, hits[:, names.index(name)] if name in names else None)
        chunks = -(-tokens // stack.chunk_tokens)
        nbytes = tokens * cost.token_bytes
        compute = cost.prefill.saved(tokens)
        left = compute - tier.call_s - chunks * tier.fixed_s
        found.append(
            LoadOrCompute(
                name,
                tokens,
                tier.seconds(chunks, nbytes),
                compute,
                tier.bytes_per_s,
                nbytes / left if left > 0 else None,
            )
        )
    return found


def _typical(
    study: Study, stack: TierConfiguration, hits: np.ndarray[tuple[int], np.dtype[np.int64]] | None
) -> int:
    tokens = study.tokens / max(1, len(study.arrays))
    if hits is not None and (hits > 0).any():
        tokens = float(np.median(hits[hits > 0]))
    return max(stack.chunk_tokens, round(tokens / stack.chunk_tokens) * stack.chunk_tokens)

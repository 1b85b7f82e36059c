"""Hits and cold prefills of a run of `bench long-context`, request by request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reports.run_file import read_run
from reports.sample import Sample


@dataclass(frozen=True, slots=True)
class Hits:
    """Requests of one cell whose KV came from ``tier`` alone, one entry each: ``ttft_s``,
    ``nbytes`` that were loaded, and ``prefill_s`` of what the cache did not have. ``cold_s``: the
    TTFT of the same requests without reuse, in the same run."""

    tier: str
    tokens: int
    ttft_s: list[float]
    nbytes: list[int]
    prefill_s: list[float]
    load_s: list[float]
    cold_s: list[float]


def read_hits(path: Path) -> list[Hits]:
    """One for each cell of reuse ``prefix`` that had hits. Raises ``RunFileError``."""
    samples, meta = read_run(path)
    modes = [cell["reuse"] for cell in meta["cells"]]
    cold = {
        (s.request_id, s.repeat): s.first_token_s - s.scheduled_s
        for s in samples
        if modes[s.cell] == "off" and s.error is None
    }
    found = []
    for number, mode in enumerate(modes):
        if mode == "prefix":
            of_cell = [s for s in samples if s.cell == number and s.error is None]
            found += _hits(of_cell, cold)
    return found


def _hits(samples: Sequence[Sample], cold: dict[tuple[str, int], float]) -> list[Hits]:
    """Of one cell; a hit that several tiers served has no one rate to be compared with."""
    by_tier: dict[str, list[Sample]] = {}
    for sample in samples:
        tiers = [tier for tier, tokens in sample.hit_tokens.items() if tokens]
        if len(tiers) == 1:
            by_tier.setdefault(tiers[0], []).append(sample)
    found = []
    for tier, served in sorted(by_tier.items()):
        # What requests for different documents have in common is a hit too, of a chunk or two.
        most = max(s.hit_tokens[tier] for s in served)
        whole = [s for s in served if s.hit_tokens[tier] >= 0.9 * most]
        found.append(
            Hits(
                tier,
                most,
                [s.first_token_s - s.scheduled_s for s in whole],
                [s.bytes_loaded for s in whole],
                [s.prefill_s for s in whole],
                [s.load_s for s in whole],
                [c for s in whole if (c := cold.get((s.request_id, s.repeat))) is not None],
            )
        )
    return found

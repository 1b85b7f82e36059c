"""One pass against the Ledger on a public trace. Its folder comes from LMCACHE_TRACES."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cache_core.plan import PLACEMENTS, Placement
from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.curves import TierCurves, hit_curves
from cache_core.sizing.replay import replay_ledger

CAPACITIES = (1, 7, 50, 200, 1000, 3000, 8000, 20_000, 40_000, 80_000, 150_000, 200_000)
STACKS: tuple[tuple[int | None, ...], ...] = (
    (100, 2000, 30_000),
    (5000, 1000, None),
)


@pytest.fixture(scope="module")
def mooncake() -> AccessTrace:
    folder = os.environ.get("LMCACHE_TRACES")
    if not folder:
        pytest.skip("LMCACHE_TRACES names no folder of traces")
    path = Path(folder) / "mooncake" / "conversation_trace.jsonl"
    if not path.is_file():
        pytest.skip(f"LMCACHE_TRACES has no {path.name}")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return AccessTrace.of(
        [row["hash_ids"] for row in rows],
        512,
        prompt_tokens=[row["input_length"] for row in rows],
        arrivals=[row["timestamp"] / 1000 for row in rows],
    )


def test_one_tier_of_twelve_capacities(mooncake: AccessTrace) -> None:
    curve = hit_curves(mooncake)["prefix"]
    tiers = TierCurves(mooncake).hits([[capacity] for capacity in CAPACITIES])
    for capacity, found in zip(CAPACITIES, tiers, strict=True):
        replayed = replay_ledger(mooncake, [capacity])
        assert (found == replayed.hits).all()
        assert curve.hit_rate(capacity) == replayed.hit_rate


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("stack", STACKS)
def test_three_tiers(
    mooncake: AccessTrace, stack: tuple[int | None, ...], placement: Placement
) -> None:
    [found] = TierCurves(mooncake).hits([stack], placement)
    assert (found == replay_ledger(mooncake, stack, placement=placement).hits).all()

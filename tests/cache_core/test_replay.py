"""The replay of the Ledger in one native call, against the Ledger called request by request."""

from __future__ import annotations

import numpy as np
import pytest

from cache_core.ledger import Ledger
from cache_core.plan import NOWHERE, PLACEMENTS, Placement
from cache_core.policies import POLICIES, Admission, BytesPerDay, SecondTouch, belady
from cache_core.sizing.accesses import AccessTrace
from cache_core.sizing.replay import replay_ledger


def trace(seed: int) -> AccessTrace:
    """Prompts down a tree, named by numbers of either sign."""
    rng = np.random.default_rng(seed)
    names: dict[tuple[int, int], int] = {}
    rows = []
    for _ in range(120):
        row, at = [], 0
        for branch in rng.integers(0, 3, rng.integers(0, 6)).tolist():
            at = names.setdefault((at, branch), (-1) ** len(names) * (len(names) + 1))
            row.append(at)
        rows.append(row)
    return AccessTrace.of(rows, 4)


def one_by_one(
    made: AccessTrace, capacities: list[int | None], policy: str, placement: Placement,
    admission: list[Admission | None],
) -> tuple[list[list[int]], list[int]]:  # fmt: skip
    keys = made.ledger_keys()
    maker = belady(keys) if policy == "belady" else POLICIES[policy]
    ledger = Ledger(capacities, maker, placement, admission)
    hits, written = [], [0] * len(capacities)
    for row in keys:
        tiers = ledger.lookup(row).tiers
        hits.append([tiers.count(tier) for tier in range(len(capacities))])
        moves = ledger.prepare_store(row).moves
        for move in moves:
            if move.target != NOWHERE:
                written[move.target] += 1
        ledger.complete_store(moves, stored=True)
    return hits, written


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("policy", [*POLICIES, "belady"])
def test_a_replay_is_the_ledger(policy: str, placement: Placement) -> None:
    for seed in range(4):
        made = trace(seed)
        found = replay_ledger(made, [7, 30], policy, placement)
        hits, written = one_by_one(made, [7, 30], policy, placement, [None, None])
        assert found.hits.tolist() == hits and list(found.written) == written


def test_admissions_and_their_clock_are_asked() -> None:
    made = trace(9)
    for native, python in (
        (SecondTouch(), SecondTouch()),
        (BytesPerDay(1e6, 100, lambda: 0.0), BytesPerDay(1e6, 100, lambda: 0.0)),
    ):
        seen: list[int] = []
        found = replay_ledger(made, [7, 30], admission=[None, native], on_request=seen.append)
        hits, written = one_by_one(made, [7, 30], "lru", "write_on_insertion", [None, python])
        assert found.hits.tolist() == hits and list(found.written) == written
        assert seen == list(range(len(made)))
    assert written[1] < written[0]


def test_what_is_not_known_is_refused() -> None:
    made = trace(0)
    with pytest.raises(ValueError, match="placement 'nowhere' is not known"):
        replay_ledger(made, [3], placement="nowhere")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="policy 'oracle' is not known"):
        replay_ledger(made, [3], "oracle")
    with pytest.raises(ValueError, match="admissions has 1 entries where 2 are needed"):
        replay_ledger(made, [3, 4], admission=[None])
    with pytest.raises(RuntimeError, match="stop"):
        replay_ledger(made, [3], on_request=_stop)


def _stop(request: int) -> None:
    raise RuntimeError("stop")

"""Folders of the connector's disk tiers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cache_core.adapters.vllm.config import ConnectorOptions
from cache_core.adapters.vllm.worker.open_tiers import of_replica, open_tiers
from cache_core.tiers import Tier, TierError

CHUNK = 4096


def opened(folder: Path, rank: int = 0, replica: int = 0) -> list[Tier]:
    options = ConnectorOptions.parse(
        {"cpu_size": "64KiB", "disk_size": "8MiB", "disk_path": str(folder)}
    )
    return open_tiers(options, CHUNK, bytes(32), rank, 2, replica=replica)


def close(tiers: list[Tier]) -> None:
    for tier in tiers:
        tier.close()


def test_ranks_and_replicas_have_folders_of_their_own(tmp_path: Path) -> None:
    tiers = [
        tier for replica in (0, 1) for rank in (0, 1) for tier in opened(tmp_path, rank, replica)
    ]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["dp-1-rank-0", "dp-1-rank-1", "rank-0", "rank-1"]
    assert all(tier.capacity for tier in tiers)
    close(tiers)


def test_a_folder_in_use_costs_the_disk_tier_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened(tmp_path)
    with caplog.at_level(logging.WARNING, "vllm.lmcache"):
        second = opened(tmp_path)
    assert [tier.name for tier in second] == ["cpu", "disk"]
    assert second[1].capacity == 0
    assert second[1].write([bytes(32)], None) == [False]
    assert "is in use by the disk tier of process" in caplog.text
    assert "give it another disk_path" in caplog.text
    close(first + second)


def test_other_trouble_still_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "rank-0").mkdir()
    (tmp_path / "rank-0" / "letters.txt").write_text("not ours")
    with pytest.raises(TierError):
        opened(tmp_path)


def test_files_are_named_by_replica() -> None:
    assert of_replica(Path("/a/trace.jsonl"), 0) == Path("/a/trace.jsonl")
    assert of_replica(Path("/a/trace.jsonl"), 2) == Path("/a/dp-2-trace.jsonl")

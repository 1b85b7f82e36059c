"""The tables of what tiers did."""

from __future__ import annotations

from rich.console import Console

from reports.summary import TierWork, summarise
from reports.tables.layout import bench_tables
from tests.reports.conftest import MakeMeta, MakeSample


def work(read: int = 0, failed: int = 0, **troubles: int) -> TierWork:
    return TierWork(
        promised_chunks=9,
        delivered_chunks=9 - failed,
        read_bytes=read,
        read_s=0.5,
        written_bytes=3 << 20,
        write_s=0.1,
        evicted_chunks=7,
        failed_chunks=failed,
        dropped_chunks=0,
        suspensions=0,
        troubles=troubles,
    )


def text(make_sample: MakeSample, make_meta: MakeMeta, tiers: dict[str, TierWork]) -> str:
    meta = make_meta("prefix", other={"tier_work": tiers}, cpu=1 << 30, disk=1 << 31)
    cell = summarise([make_sample(hit_tokens={"disk": 40})], None, meta)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(bench_tables([cell]))
    return captured.get()


def test_several_tiers_are_told_apart(make_sample: MakeSample, make_meta: MakeMeta) -> None:
    shown = text(make_sample, make_meta, {"cpu": work(), "disk": work(read=500_000_000)})
    assert "tiers of long-context, cpu 1 GiB, disk 2 GiB, chunks of 64" in shown
    [disk] = [line for line in shown.splitlines() if line.startswith("disk ")]
    assert disk.split() == ["disk", "40.0", "477", "MiB", "1.00", "3", "MiB", "0.03", "7", "0"]


def test_one_tier_has_no_table_unless_it_failed(
    make_sample: MakeSample, make_meta: MakeMeta
) -> None:
    assert "tiers of" not in text(make_sample, make_meta, {"cpu": work()})
    shown = text(make_sample, make_meta, {"cpu": work(failed=3, damaged=2)})
    assert "damaged" in shown

from __future__ import annotations

from collections.abc import Callable

import pytest

from reports.paired import OutputChanges, Speedup
from reports.sample import Sample
from reports.summary import CellMeta, Spread, Throughput, summarise

Make = Callable[..., Sample]
Meta = Callable[..., CellMeta]


def test_a_cell_by_hand(make_sample: Make, make_meta: Meta) -> None:
    samples = [
        make_sample(
            "a",
            at=0.0,
            ttft=4.0,
            hit_tokens={"cpu": 0, "disk": 0},
            expected_hit_tokens=0,
            bytes_stored=500,
            lookup_s=0.25,
            prefill_s=3.5,
        ),
        make_sample(
            "b",
            at=2.0,
            sent_s=3.0,
            first_token_s=4.0,
            token_s=(4.0, 4.25, 5.0),
            finished_s=5.0,
            output_tokens=3,
            prompt_tokens=300,
            hit_tokens={"cpu": 128, "disk": 64},
            expected_hit_tokens=192,
            bytes_loaded=1000,
            load_s=0.5,
        ),
    ]
    cell = summarise(samples, None, make_meta(cpu=1, disk=1))
    assert (cell.n, cell.failed) == (2, 0)
    assert [cell.ttft.p50, cell.ttft.p90] == pytest.approx([3.0, 3.8])
    assert (cell.ttft_from_send.p50, cell.client_queue.max) == (2.5, 1.0)
    assert (cell.itl.n, cell.itl.p50) == (3, 0.5)
    assert (cell.tpot.n, cell.tpot.max, cell.tpot.min) == (2, 0.5, 0.5)
    assert (cell.e2e.min, cell.e2e.max) == (3.0, 4.5)
    assert (cell.lookup.max, cell.load.max, cell.prefill.max) == (0.25, 0.5, 3.5)
    assert (cell.prompt_tokens, cell.output_tokens) == (400, 5)
    assert cell.hit_tokens == {"device": 0, "cpu": 128, "disk": 64, "remote": 0}
    assert cell.hit_rate == 192 / 400
    assert cell.tier_rate("disk") == 64 / 400
    assert cell.recomputed_tokens == 208
    assert (cell.expected_hit_tokens, cell.unexpected_hits) == (192, 0)
    assert (cell.bytes_loaded, cell.bytes_stored, cell.load_bytes_per_s) == (1000, 500, 2000.0)
    assert cell.throughput == Throughput(2 / 5, 400 / 5, 5 / 5)
    assert (cell.speedup, cell.outputs) == (Speedup(), OutputChanges())


def test_interleaved_cells_count_their_own_time(make_sample: Make, make_meta: Meta) -> None:
    samples = [make_sample("a", at=0.0), make_sample("b", at=1000.0)]
    cell = summarise(samples, None, make_meta(other={"busy_s": 4.0}))
    assert cell.throughput == Throughput(0.5, 50.0, 1.0)


def test_against_the_cell_without_reuse(make_sample: Make, make_meta: Meta) -> None:
    off = [make_sample(f"r{i}", ttft=12.0) for i in range(6)]
    on = [make_sample(f"r{i}", ttft=3.0, hit_tokens={"cpu": 64}) for i in range(6)]
    cell = summarise(on, off, make_meta(cpu=1))
    assert cell.speedup == Speedup(4.0, 4.0, 4.0)
    assert cell.outputs.identical is True
    on[2] = make_sample("r2", ttft=3.0, output_ids=(7, 9))
    assert summarise(on, off, make_meta(cpu=1)).outputs == OutputChanges(compared=6, different=1)


def test_failed_requests_are_counted_and_nothing_else(make_sample: Make, make_meta: Meta) -> None:
    good = make_sample("a", ttft=1.0)
    bad = make_sample(
        "b", ttft=99.0, finished_s=3.0, prompt_tokens=5000, bytes_loaded=77, error="out of memory"
    )
    cell = summarise([good, bad], None, make_meta())
    assert (cell.n, cell.failed) == (1, 1)
    assert cell.ttft == Spread.of([1.0])
    assert (cell.prompt_tokens, cell.bytes_loaded) == (100, 0)
    # the time that the failure took is time in which nothing else was served
    assert cell.throughput.requests_per_s == 1 / 3


@pytest.mark.parametrize("failures", [0, 2])
def test_a_cell_without_results(make_sample: Make, make_meta: Meta, failures: int) -> None:
    samples = [make_sample(f"r{i}", error="lost", token_s=()) for i in range(failures)]
    cell = summarise(samples, [make_sample("r0")], make_meta(cpu=1))
    assert (cell.n, cell.failed) == (0, failures)
    assert cell.ttft == cell.itl == cell.tpot == Spread()
    assert cell.hit_rate is cell.tier_rate("cpu") is cell.load_bytes_per_s is None
    assert cell.expected_hit_tokens is cell.unexpected_hits is None
    assert cell.speedup == Speedup()
    assert cell.outputs.identical is None


def test_a_reply_of_one_token_or_none(make_sample: Make, make_meta: Meta) -> None:
    one = make_sample("a", ttft=2.0, output_tokens=1, token_s=(2.0,), finished_s=2.0)
    none = make_sample("b", ttft=9.0, output_tokens=0, token_s=(), output_ids=())
    cell = summarise([one, none], None, make_meta())
    assert cell.n == 2
    assert cell.ttft == Spread.of([2.0])
    assert cell.itl == cell.tpot == Spread()


def test_hits_that_a_clean_cache_would_not_have(make_sample: Make, make_meta: Meta) -> None:
    samples = [
        make_sample("a", hit_tokens={"cpu": 64}, expected_hit_tokens=0),
        make_sample("b", hit_tokens={"cpu": 64}, expected_hit_tokens=64),
    ]
    cell = summarise(samples, None, make_meta(cpu=1))
    assert (cell.expected_hit_tokens, cell.unexpected_hits) == (64, 1)
    samples.append(make_sample("c"))
    assert summarise(samples, None, make_meta(cpu=1)).unexpected_hits is None

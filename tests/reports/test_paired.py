from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from reports.paired import OutputChanges, Speedup, compare_outputs, pair_rows, ttft_speedup
from reports.sample import Sample, frame

Make = Callable[..., Sample]


def test_pairs_are_by_repeat_and_request_and_both_completed(make_sample: Make) -> None:
    off = [make_sample("b"), make_sample("a"), make_sample("c", error="lost"), make_sample("d")]
    cell = [make_sample("a", repeat=1), make_sample("a"), make_sample("b"), make_sample("c")]
    pairs = pair_rows(frame(off), frame(cell))
    assert list(zip(pairs.repeat, pairs.request_id, strict=True)) == [(0, "a"), (0, "b")]


def test_speedup_is_the_ratio_of_the_medians(make_sample: Make) -> None:
    off = [make_sample(name, ttft=ttft) for name, ttft in (("a", 8.0), ("b", 10.0), ("c", 90.0))]
    cell = [make_sample(name, ttft=ttft) for name, ttft in (("a", 4.0), ("b", 1.0), ("c", 2.0))]
    assert ttft_speedup(pair_rows(frame(off), frame(cell))) == Speedup(5.0, None, None)


def test_speedup_leaves_out_what_failed_on_either_side(make_sample: Make) -> None:
    off = [make_sample("a", ttft=8.0), make_sample("b", ttft=100.0)]
    cell = [make_sample("a", ttft=2.0), make_sample("b", ttft=1.0, error="lost")]
    assert ttft_speedup(pair_rows(frame(off), frame(cell))).ratio == 4.0


def test_no_pairs_or_no_time_give_no_speedup(make_sample: Make) -> None:
    assert ttft_speedup(_paired([])) == Speedup()
    assert ttft_speedup(_paired([(make_sample(), make_sample(ttft=0.0))])) == Speedup()
    assert ttft_speedup(_paired([(make_sample(), make_sample(output_tokens=0))])) == Speedup()


def test_interval_holds_the_ratio_and_is_repeatable(make_sample: Make) -> None:
    pairs = _paired(_noisy(make_sample, requests=40, speedup=10.0, noise=0.1))
    first = ttft_speedup(pairs)
    assert first.ratio is not None
    assert first.low is not None
    assert first.high is not None
    assert first.low < first.ratio < first.high
    assert 9.0 < first.low < 10.0 < first.high < 11.5
    assert ttft_speedup(pairs) == first
    assert ttft_speedup(pairs, seed=1) != first


def test_interval_narrows_with_less_noise(make_sample: Make) -> None:
    def width(noise: float) -> float:
        found = ttft_speedup(_paired(_noisy(make_sample, requests=40, speedup=10.0, noise=noise)))
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width(0.01) < width(0.1) / 3


def test_interval_takes_the_mix_of_hits_and_misses_as_given(make_sample: Make) -> None:
    """A third of the requests miss. Drawn at random, misses would be the median now and then, and
    the interval would reach down to 1."""
    pairs = []
    for i in range(12):
        hit = i % 3 > 0
        name = f"r{i}"
        off = make_sample(name, ttft=10.0 + i / 100)
        cell = make_sample(
            name, ttft=(1.0 if hit else 10.0) + i / 100, hit_tokens={"cpu": 64 * hit}
        )
        pairs.append((off, cell))
    found = ttft_speedup(_paired(pairs))
    assert found.low is not None
    assert found.low > 8.5


def test_repeats_of_a_request_are_drawn_together(make_sample: Make) -> None:
    """Copies of the same numbers are no new evidence: the interval stays as wide."""
    once = _noisy(make_sample, requests=20, speedup=3.0, noise=0.2)
    again = [
        (_repeat(off, repeat), _repeat(cell, repeat)) for repeat in range(5) for off, cell in once
    ]
    assert ttft_speedup(_paired(again)) == ttft_speedup(_paired(once))


def test_a_missing_repeat_is_no_harm(make_sample: Make) -> None:
    once = _noisy(make_sample, requests=8, speedup=3.0, noise=0.1)
    pairs = once + [(_repeat(off, 1), _repeat(cell, 1)) for off, cell in once[:3]]
    found = ttft_speedup(_paired(pairs))
    assert found.low is not None
    assert 2.0 < found.low < 4.0


@pytest.mark.parametrize(
    ("off", "cell", "expected"),
    [
        ((1, 2), (1, 2), OutputChanges(1, 0)),
        ((1, 2), (1, 3), OutputChanges(1, 1)),
        ((1, 2), (1,), OutputChanges(1, 1)),
        ((), (), OutputChanges(0, 0)),
    ],
)
def test_outputs(
    make_sample: Make, off: tuple[int, ...], cell: tuple[int, ...], expected: OutputChanges
) -> None:
    def sample(ids: tuple[int, ...]) -> Sample:
        return make_sample(output_ids=ids, output_tokens=len(ids))

    assert compare_outputs(_paired([(sample(off), sample(cell))])) == expected


def test_outputs_that_nobody_reports_are_not_compared(make_sample: Make) -> None:
    silent = make_sample(output_ids=(), output_tokens=2)
    both = make_sample("r1", output_ids=(), output_tokens=2)
    assert compare_outputs(_paired([(make_sample(), silent), (both, both)])).identical is None


def test_an_empty_answer_differs_from_one_with_tokens(make_sample: Make) -> None:
    empty = make_sample(output_ids=(), output_tokens=0)
    assert compare_outputs(_paired([(make_sample(), empty)])).identical is False


def _paired(pairs: list[tuple[Sample, Sample]]) -> Any:
    return pair_rows(frame([off for off, _ in pairs]), frame([cell for _, cell in pairs]))


def _noisy(make: Make, requests: int, speedup: float, noise: float) -> list[tuple[Sample, Sample]]:
    rng = np.random.default_rng(7)
    pairs = []
    for i in range(requests):
        off, cell = rng.normal(1.0, noise, 2).clip(0.1)
        name = f"r{i:03}"
        pairs.append((make(name, ttft=10.0 * off), make(name, ttft=10.0 * cell / speedup)))
    return pairs


def _repeat(sample: Sample, repeat: int) -> Sample:
    return Sample.from_row({**sample.to_row(), "repeat": repeat})

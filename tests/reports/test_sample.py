from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from reports.sample import Sample

Make = Callable[..., Sample]


def test_times_count_from_the_scheduled_arrival(make_sample: Make) -> None:
    sample = make_sample(at=10.0, ttft=2.0, sent_s=11.0)
    assert sample.ttft_s == 2.0


def test_row_tells_a_tier_without_hits_from_no_tier(make_sample: Make) -> None:
    sample = make_sample(hit_tokens={"cpu": 64, "disk": 0})
    row = sample.to_row()
    assert (row["hit_device"], row["hit_cpu"], row["hit_disk"]) == (None, 64, 0)
    assert "hit_tokens" not in row
    assert Sample.from_row({**row, "later": 1}) == sample
    assert sample.hits == 64


def test_row_without_a_key_is_refused(make_sample: Make) -> None:
    row = make_sample().to_row()
    del row["prefill_s"]
    with pytest.raises(KeyError, match="prefill_s"):
        Sample.from_row(row)


def test_unknown_tier_is_refused(make_sample: Make) -> None:
    with pytest.raises(ValueError, match="request r7: hit_tokens names the tier 'gpu'"):
        make_sample("r7", hit_tokens={"gpu": 1})


def test_a_completed_sample_needs_finite_times(make_sample: Make) -> None:
    with pytest.raises(ValueError, match="request r7: first_token_s is nan"):
        make_sample("r7", first_token_s=math.nan)
    with pytest.raises(ValueError, match="finished_s is inf"):
        make_sample(finished_s=math.inf, error="lost")
    assert not make_sample(first_token_s=math.nan, error="no first token").completed

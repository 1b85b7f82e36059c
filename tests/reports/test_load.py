"""Run files as one DataFrame."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reports
from reports.run_file import write_run
from reports.sample import Sample
from reports.stored import StoredError


def test_a_row_per_request_with_its_cell(
    make_sample: Callable[..., Sample], make_meta: Callable[..., Any], tmp_path: Path
) -> None:
    cells = [make_meta("off", None), make_meta("prefix", 64, cpu=2**29)]
    for name in ("a", "b"):
        samples = [
            make_sample("r0", ttft=4.0, cell=0, workload="long-context"),
            make_sample("r0", ttft=1.0, cell=1, workload="long-context", hit_tokens={"cpu": 64}),
        ]
        write_run(tmp_path / f"{name}.parquet", samples, {"kind": "bench", "cells": cells})
    found = reports.load(sorted(tmp_path.glob("*.parquet")))
    assert list(found.run) == ["a", "a", "b", "b"]
    assert list(found.reuse) == ["off", "prefix"] * 2
    assert found.groupby("reuse").ttft.median().to_dict() == {"off": 4.0, "prefix": 1.0}
    last = found.iloc[-1]
    assert (last.workload, last["tiers.cpu"], last.hits) == ("long-context", 2**29, 64)
    assert math.isnan(found.iloc[0]["tiers.cpu"])
    assert len(reports.load(tmp_path / "a.parquet")) == 2 and reports.load([]).empty
    (tmp_path / "x.parquet").write_text("no run")
    with pytest.raises(StoredError, match="not a run file"):
        reports.load(tmp_path / "x.parquet")

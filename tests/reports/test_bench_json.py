from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.bench_json import bench_json, cell_json, csv_text, json_text
from reports.sample import Sample
from reports.summary import CellMeta, CellSummary, summarise

Make = Callable[..., Sample]
Meta = Callable[..., CellMeta]

SPREAD = {"mean", "p50", "p90", "p99"}
CONTRACT: dict[str, set[str]] = {
    "workload": set(),
    "engine": set(),
    "model": set(),
    "reuse": set(),
    "chunk_tokens": set(),
    "tiers": set(),
    "n": set(),
    "ttft_ms": SPREAD,
    "itl_ms": SPREAD,
    "e2e_ms": SPREAD,
    "throughput": {"requests_per_s", "input_tokens_per_s", "output_tokens_per_s"},
    "hit_rate": set(),
    "hit_tokens": {"device", "cpu", "disk", "remote"},
    "recomputed_tokens": set(),
    "speedup_ttft": set(),
    "identical_outputs": set(),
    "failed": set(),
}
"""What scripts rely on: more keys may come, none of these may go."""


@pytest.fixture
def cells(make_sample: Make, make_meta: Meta) -> list[CellSummary]:
    off = [make_sample(f"r{i}", ttft=4.0) for i in range(5)]
    on = [make_sample(f"r{i}", ttft=1.0, hit_tokens={"cpu": 64}) for i in range(5)]
    return [
        summarise(off, None, make_meta("off", None)),
        summarise(on, off, make_meta(cpu=2**29, other={"policy": "lru", "state": "cold"})),
        summarise([], off, make_meta(cpu=2**30)),
    ]


def test_every_cell_keeps_the_contract(cells: list[CellSummary]) -> None:
    for cell in cells:
        document = cell_json(cell)
        assert set(CONTRACT) <= set(document)
        for key, inner in CONTRACT.items():
            if inner:
                assert inner <= set(document[key]), key


def test_values_of_a_cell(cells: list[CellSummary]) -> None:
    cell = cell_json(cells[1])
    assert cell["ttft_ms"]["p50"] == 1000.0
    assert cell["ttft_ms"]["n"] == 5
    assert cell["tiers"] == {"cpu": 2**29}
    assert cell["speedup_ttft"] == 4.0
    assert cell["speedup_ttft_interval"] == {"low": 4.0, "high": 4.0}
    assert cell["identical_outputs"] is True
    assert (cell["policy"], cell["placement"], cell["state"]) == ("lru", None, "cold")
    assert cell_json(cells[0])["identical_outputs"] is None
    assert cell_json(cells[2])["ttft_ms"]["p50"] is None


def test_the_document_is_strict_json(cells: list[CellSummary]) -> None:
    document = bench_json(cells, {"cpu": "Žen 5"}, {"numpy": "2"}, {"seed": 0}, ["slow disk"])
    keys = ["schema", "started", "commit", "machine", "versions", "config", "warnings", "complete"]
    keys += ["busy", "time_budget", "cells", "refused"]
    assert list(document) == keys
    text = json_text(document)
    assert json.loads(text) == document
    assert document["schema"] == "lmcache.bench/1"
    assert "Žen 5" in text
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        json_text({"rate": float("nan")})


def test_csv_has_the_same_values(cells: list[CellSummary]) -> None:
    text = csv_text(cells)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 3
    assert rows[1]["ttft_ms.p50"] == "1000.0"
    assert rows[1]["tiers.cpu"] == str(2**29)
    assert rows[1]["identical_outputs"] == "true"
    assert (rows[0]["tiers.cpu"], rows[0]["identical_outputs"]) == ("", "")
    assert rows[0]["ttft_ms.p50"] == "4000.0"
    assert "\r" not in text


def test_csv_columns_do_not_depend_on_the_run(cells: list[CellSummary]) -> None:
    assert csv_text(cells[:1]).splitlines()[0] == csv_text(cells[1:]).splitlines()[0]
    assert csv_text([]) == ""


def test_every_key_is_documented(cells: list[CellSummary]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    keys = set(_keys(bench_json(cells, {}, {}, {}, [])))
    assert keys - named == set()


def test_every_column_of_a_run_is_documented(make_sample: Make) -> None:
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
    assert set(make_sample().to_row()) - set(re.findall(r"`([a-z0-9_]+)`", page)) == set()


def _keys(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(key for inner in value.values() for key in _keys(inner))]
    return [key for inner in value for key in _keys(inner)] if isinstance(value, list) else []

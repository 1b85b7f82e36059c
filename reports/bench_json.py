"""The document of ``lmcache bench --json``, described in docs/json.md, and the same as CSV."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from reports.sample import TIERS
from reports.summary import SPREADS, BlendMeta, CellSummary, RefusedCell, SharedMeta, Spread
from reports.tables.findings import verdict

BENCH_SCHEMA = "lmcache.bench/1"
_OPTIONAL = ("context_tokens", "policy", "placement", "admission", "codec", "state")


def bench_json(
    cells: Sequence[CellSummary],
    machine: Mapping[str, Any],
    versions: Mapping[str, Any],
    config: Mapping[str, Any],
    warnings: Sequence[str],
    complete: bool = True,
    refused: Sequence[RefusedCell] = (),
    busy: Mapping[str, float] | None = None,
    started: str | None = None,
    commit: str | None = None,
    time_budget: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the whole document of ``lmcache bench --json``. ``complete`` is False for a run that
    was interrupted or is void; ``refused`` are cells that could not be measured; ``busy`` is
    what else the machine did meanwhile, ``started`` an ISO time, ``commit`` that of the folder's
    repository, ``time_budget`` how the run was fitted into a time, each None if unknown."""
    return {
        "schema": BENCH_SCHEMA,
        "started": started,
        "commit": commit,
        "machine": dict(machine),
        "versions": dict(versions),
        "config": dict(config),
        "warnings": list(warnings),
        "complete": complete,
        "busy": dict(busy) if busy else None,
        "time_budget": dict(time_budget) if time_budget else None,
        "cells": [cell_json(cell) for cell in cells],
        "refused": [cell.to_json() for cell in refused],
    }


def cell_json(cell: CellSummary) -> dict[str, Any]:
    """Returns one cell of the document. Every key is always there; a value that does not exist is
    None."""
    meta = cell.meta
    return {
        "workload": meta["workload"],
        "engine": meta["engine"],
        "model": meta["model"],
        "reuse": meta["reuse"],
        "chunk_tokens": meta["chunk_tokens"],
        "tiers": dict(meta["tiers"]),
        **{name: meta.get(name) for name in _OPTIONAL},
        "tier_work": {name: dict(work) for name, work in meta.get("tier_work", {}).items()},
        "n": cell.n,
        "failed": cell.failed,
        **{f"{name}_ms": _milliseconds(getattr(cell, name)) for name in SPREADS},
        "throughput": asdict(cell.throughput),
        "prompt_tokens": cell.prompt_tokens,
        "output_tokens": cell.output_tokens,
        "hit_rate": cell.hit_rate,
        "hit_tokens": dict(cell.hit_tokens),
        "recomputed_tokens": cell.recomputed_tokens,
        "expected_hit_tokens": cell.expected_hit_tokens,
        "unexpected_hits": cell.unexpected_hits,
        "bytes_loaded": cell.bytes_loaded,
        "bytes_stored": cell.bytes_stored,
        "load_bytes_per_s": cell.load_bytes_per_s,
        "speedup_ttft": cell.speedup.ratio,
        "speedup_ttft_interval": {"low": cell.speedup.low, "high": cell.speedup.high},
        "prefill_saved_ms": _ms(cell.prefill_saved_s),
        "goodput": {"requests_per_s": cell.goodput_per_s, "bound_ms": _ms(cell.goodput_bound_s)},
        "tail_tokens": cell.tail_tokens,
        "any_position": meta.get("any_position"),
        "verdict": verdict(cell) or None,
        "identical_outputs": cell.outputs.identical,
        "outputs_compared": cell.outputs.compared,
        "outputs_different": cell.outputs.different,
        "blend": _blend_json(cell),
        "shared": _shared_json(cell),
        "quality": _answers_json(cell),
    }


def _blend_json(cell: CellSummary) -> dict[str, Any]:
    meta, quality = cell.meta.get("blend"), cell.quality
    approximate = meta is not None or "shared" in cell.meta
    return {
        **dict.fromkeys(BlendMeta.__annotations__),
        **(meta or {}),
        "blended_tokens": cell.blended_tokens if approximate else None,
        "selected_tokens": cell.selected_tokens if approximate else None,
        "token_layer_share": cell.token_layer_share,
        "own_ms": _milliseconds(cell.blend),
        "own_share": cell.own_share,
        "kl": quality.kl,
        "kl_interval": {"low": quality.kl_low, "high": quality.kl_high},
        "agreement": quality.agreement,
        "positions_compared": quality.positions,
    }


def _answers_json(cell: CellSummary) -> dict[str, Any]:
    found = cell.answers
    return {
        "answers": found.n,
        "f1": found.f1,
        "f1_interval": {"low": found.f1_low, "high": found.f1_high},
        "exact_match": found.exact,
        "exact_match_interval": {"low": found.exact_low, "high": found.exact_high},
    }


def _shared_json(cell: CellSummary) -> dict[str, Any]:
    meta = cell.meta.get("shared")
    return {**dict.fromkeys(SharedMeta.__annotations__), **(meta or {})}


def json_text(document: Mapping[str, Any]) -> str:
    """Returns the document as indented JSON with a newline at its end. Raises ``ValueError`` for
    NaN or infinity, which JSON does not have."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def csv_text(cells: Sequence[CellSummary], runs: Sequence[str] = ()) -> str:
    """Returns CSV with one line per cell under a header. Columns are the JSON paths
    (``ttft_ms.p50``), the same for every run; a value that does not exist is empty. ``runs`` names
    each cell's run, in a first column; without it there is no such column."""
    import pandas

    rows = []
    for index, cell in enumerate(cells):
        document = ({"run": runs[index]} if runs else {}) | cell_json(cell)
        del document["tier_work"]  # as deep as tiers are many: JSON has it
        document["tiers"] = {tier: document["tiers"].get(tier) for tier in TIERS}
        rows.append(_flat(document))
    if not rows:
        return ""
    truth = {True: "true", False: "false"}
    table = pandas.DataFrame(rows, dtype=object)
    booleans = table.map(lambda value: isinstance(value, bool))
    shown = table.mask(booleans, table.map(truth.get))
    return str(shown.to_csv(index=False, lineterminator="\n"))


def _milliseconds(spread: Spread) -> dict[str, float | int | None]:
    return {
        name: value if name == "n" or value is None else value * 1e3
        for name, value in asdict(spread).items()
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat

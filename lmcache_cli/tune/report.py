"""Reports a recommendation, for people and as JSON (``lmcache.tune/1``, see docs/json.md)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmcache_cli.tune.candidates import StackOutcome
from lmcache_cli.tune.load_or_compute import LoadOrCompute
from lmcache_cli.tune.policies import Headroom, PolicyCurve
from lmcache_cli.tune.report_sections import plots, snippets, validation_json, validation_tables
from lmcache_cli.tune.search import Recommendation
from lmcache_cli.tune.study import Study, Uncertainty
from lmcache_cli.tune.validate import Validation
from reports.stored import TUNE_SCHEMA
from reports.tables.tune import heading
from reports.units import NONE, bytes_text

_POINTS = 32


def document(
    study: Study, found: Recommendation, chunks: list[int], validation: Validation | None = None
) -> dict[str, Any]:
    """Returns the whole recommendation and what it rests on, as plain values."""
    arrays = study.arrays
    return {
        "schema": TUNE_SCHEMA,
        "source": {
            "requests": len(arrays),
            "tokens": study.tokens,
            "unique_chunks": len(np.unique(arrays.chunk_ids)),
            "chunk_tokens": arrays.chunk_tokens,
            "ceiling_hit_rate": found.ceiling,
        },
        "cost": {
            "source": study.cost.source,
            "kv_bytes_per_token": study.cost.token_bytes,
            "prefill": {
                "a": study.cost.prefill.a,
                "b": study.cost.prefill.b,
                "c": study.cost.prefill.c,
            },
            "notes": list(study.cost.notes),
        },
        "curves": [
            *(curve for chunk in chunks for curve in _curves(study, chunk)),
            *(_policy_curve(study, curve) for curve in found.policy_curves),
        ],
        "recommendation": {
            "chunk_tokens": found.chosen.stack.chunk_tokens,
            "tiers": found.chosen.stack.sizes,
            "policy": found.chosen.stack.policy,
            "placement": found.chosen.stack.placement,
            "admission": found.chosen.stack.admission,
            "predicted": _predicted(found.chosen),
            "binding_constraint": found.binding,
            "keeps_bounds": found.keeps_bounds,
            "marginals": [
                {
                    "tier": m.tier,
                    "from_bytes": m.from_bytes,
                    "to_bytes": m.to_bytes,
                    "hit_rate": m.hit_rate,
                    "mean_ttft_ms": 1e3 * m.idle_s,
                    "cost_per_hour": m.cost_per_hour,
                    "text": m.text(),
                }
                for m in found.marginals
            ],
            "verdicts": list(found.verdicts),
            "uncertainty": _uncertainty_json(found.uncertainty),
            "load_or_compute": [
                {
                    "tier": one.tier,
                    "tokens": one.tokens,
                    "load_ms": 1e3 * one.load_s,
                    "compute_ms": 1e3 * one.compute_s,
                    "bytes_per_s": one.bytes_per_s,
                    "break_even_bytes_per_s": one.break_even_bytes_s,
                    "choice": "load" if one.loads else "recompute",
                }
                for one in found.loads
            ],
            "snippets": snippets(found.chosen.stack, study.cost.devices),
        },
        "headroom": _headroom_json(found.headroom),
        "without_cache": _predicted(found.none),
        "front": [{"tiers": o.stack.sizes, **_predicted(o)} for o in found.front],
        "rejected": [{"tiers": o.stack.sizes, "why": why} for o, why in found.rejected],
        "validation": validation_json(validation) if validation else None,
    }


def tune_json_text(
    study: Study, found: Recommendation, chunks: list[int], validation: Validation | None = None
) -> str:
    """Returns the document of a recommendation as JSON text."""
    return json.dumps(document(study, found, chunks, validation), indent=1) + "\n"


def print_report(
    console: Console, study: Study, found: Recommendation, validation: Validation | None = None
) -> None:
    """Prints the recommendation, what else there was, how to set it, and whether it held."""
    console.print(_report(study, found, validation), crop=False)


def _report(study: Study, found: Recommendation, validation: Validation | None) -> RenderableType:
    stack = found.chosen.stack
    sizes = ", ".join(f"{name} {bytes_text(size)}" for name, size in stack.tiers) or "no cache"
    parts: list[RenderableType] = [
        Text(f"{heading(found.keeps_bounds)}: {sizes}", style="bold"),
        Text(
            f"chunks of {stack.chunk_tokens} tokens, {stack.policy}, {stack.placement}"
            f" · {len(study.arrays):,} requests, {study.tokens:,} prompt tokens"
            f" · ceiling {100 * found.ceiling:.1f} %"
        ),
        Text(
            "predicted only: nothing was run (what the notes below say is assumed)"
            if validation is None
            else "predicted; below is what was measured",
            style="dim",
        ),
        Text(),
        _table(found),
        Text(),
    ]
    for plot in plots(study, found):
        parts += [Text(plot, no_wrap=True), Text()]
    if validation is not None:
        parts += [*validation_tables(validation), Text()]
    if found.uncertainty is not None:
        parts += [Text(f"· {text}") for text in _uncertainty_text(found.uncertainty)]
    parts += [Text(f"· {text}") for text in found.verdicts]
    parts += [Text(f"· {one.text()}") for one in found.loads if _shown(found, one)]
    parts += [Text(f"· {marginal.text()}") for marginal in found.marginals]
    if found.binding is not None:
        parts.append(Text(f"· what holds it back: {found.binding}"))
    parts += [Text(f"· {note}", style="dim") for note in study.cost.notes]
    for name, text in snippets(stack, study.cost.devices).items():
        # to be pasted: no line is broken, in a pipe neither
        parts += [Text(), Text(f"{name}:"), Text(text, no_wrap=True, overflow="ignore")]
    return Group(*parts)


def _table(found: Recommendation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for name in (
        "",
        "cpu",
        "disk",
        "chunk",
        "hit %",
        "TTFT p50",
        "p90",
        "p99",
        "per hour",
        "writes/day",
    ):
        table.add_column(name, justify="left" if not name else "right")
    for outcome in found.front:
        sizes = outcome.stack.sizes
        writes = outcome.disk_writes_per_day
        table.add_row(
            "→" if outcome is found.chosen else "",
            *(bytes_text(sizes[name]) if name in sizes else NONE for name in ("cpu", "disk")),
            str(outcome.stack.chunk_tokens) if sizes else NONE,
            f"{100 * outcome.hit_rate:.1f}",
            *(_seconds(outcome.ttft[name]) for name in ("p50", "p90", "p99")),
            f"{outcome.cost_per_hour:.4f}",
            bytes_text(int(writes)) if writes else NONE,
            style="bold" if outcome is found.chosen else "",
        )
    return table


def _seconds(value: float) -> str:
    return f"{1e3 * value:,.0f} ms" if value < 10 else f"{value:,.0f} s"


def _predicted(outcome: StackOutcome) -> dict[str, Any]:
    return {
        "hit_rate": outcome.hit_rate,
        "hit_tokens": dict(outcome.hit_tokens),
        "ttft_ms": {name: 1e3 * value for name, value in outcome.ttft.items()},
        "mean_idle_ttft_ms": 1e3 * outcome.idle_s,
        "cost_per_hour": outcome.cost_per_hour,
        "disk_writes_per_day": outcome.disk_writes_per_day,
        "chunk_tokens": outcome.stack.chunk_tokens,
        "placement": outcome.stack.placement,
        "policy": outcome.stack.policy,
        "admission": outcome.stack.admission,
    }


def _curves(study: Study, chunk: int) -> list[dict[str, Any]]:
    found = []
    for kind, curve in study.curves(chunk).items():
        most = max(1, int(curve.capacities[-1])) if len(curve.capacities) else 1
        capacities = np.unique(np.geomspace(1, most, _POINTS).astype(np.int64))
        found.append(
            {
                "chunk_tokens": chunk,
                "kind": kind,
                "policy": "lru",
                "sampled": curve.rate,
                "points": [
                    {
                        "capacity_bytes": int(capacity) * study.chunk_bytes(chunk),
                        "hit_rate": curve.hit_rate(int(capacity)),
                    }
                    for capacity in capacities
                ],
            }
        )
    return found


def _policy_curve(study: Study, curve: PolicyCurve) -> dict[str, Any]:
    size = study.chunk_bytes(curve.chunk_tokens)
    return {
        "chunk_tokens": curve.chunk_tokens,
        "kind": "prefix",
        "policy": curve.policy,
        "sampled": curve.rate,
        "points": [
            {"capacity_bytes": capacity * size, "hit_rate": rate}
            for capacity, rate in zip(curve.capacities, curve.hit_rates, strict=True)
        ],
    }


def _headroom_json(room: Headroom | None) -> dict[str, Any] | None:
    if room is None:
        return None
    return {"hit_rates": room.hit_rates, "ceiling": room.ceiling, "sampled": room.rate}


def _uncertainty_json(of: Uncertainty | None) -> dict[str, Any] | None:
    if of is None:
        return None
    return {
        "hit_rate": _ends(of.hit_rate),
        "over": of.groups,
        "ttft_ms": None
        if of.ttft is None
        else {n: _ends((1e3 * low, 1e3 * high)) for n, (low, high) in of.ttft.items()},
    }


def _ends(interval: tuple[float, float] | None) -> dict[str, float] | None:
    return None if interval is None else {"low": min(interval), "high": max(interval)}


def _uncertainty_text(of: Uncertainty) -> list[str]:
    found = []
    if of.hit_rate is not None:
        low, high = of.hit_rate
        found.append(
            f"hit rate {100 * low:.1f} to {100 * high:.1f} % (95 %, bootstrap over {of.groups})"
        )
    if of.ttft is not None:
        times = ", ".join(f"{n} {_seconds(a)} to {_seconds(b)}" for n, (a, b) in of.ttft.items())
        found.append(f"TTFT with the fastest and the slowest prefill that is likely: {times}")
    return found


def _shown(found: Recommendation, one: LoadOrCompute) -> bool:
    """Returns whether a tier is shown: it was chosen, or it could be bought but does not load
    faster."""
    return one.tier in found.chosen.stack.sizes or (not one.loads and one.tier in ("cpu", "disk"))

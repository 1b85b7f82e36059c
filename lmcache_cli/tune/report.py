"""Reports a recommendation, for people and as JSON (``lmcache.tune/1``, see docs/json.md)."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lmcache_cli.tune.answer import answer
from lmcache_cli.tune.candidates import (
    Goal,
    StackOutcome,
    TierConfiguration,
    deciding,
    how_text,
    latency_text,
    number,
)
from lmcache_cli.tune.policies import Headroom, PolicyCurve
from lmcache_cli.tune.report_sections import plots, snippets, validation_json, validation_tables
from lmcache_cli.tune.search import Recommendation, replayed
from lmcache_cli.tune.study import Study
from lmcache_cli.tune.validate import Validation
from lmcache_cli.tune.worth import Uncertainty, Worth
from reports.stored import TUNE_SCHEMA
from reports.units import NONE, bytes_text, seconds_text

_POINTS = 32


def document(
    study: Study, found: Recommendation, chunks: list[int], validation: Validation | None = None
) -> dict[str, Any]:
    """Returns the whole recommendation and what it rests on, as plain values."""
    arrays, said = study.arrays, answer(study, found)
    return {
        "schema": TUNE_SCHEMA,
        "source": {
            "requests": len(arrays),
            "tokens": study.tokens,
            "unique_chunks": len(np.unique(arrays.chunk_ids)),
            "chunk_tokens": arrays.chunk_tokens,
            "ceiling_hit_rate": found.ceiling,
            "any_position_hit_rate": study.any_position,
            "reported_hit_rate": study.reported,
        },
        "cost": {
            "source": study.cost.source,
            "kv_bytes_per_token": study.cost.token_bytes,
            "prefill": {
                "a": study.cost.prefill.a,
                "b": study.cost.prefill.b,
                "c": study.cost.prefill.c,
            },
            "device": _device_json(study),
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
            "routing": found.chosen.stack.routing,
            "predicted": _predicted(found.chosen, found.goal),
            "binding_constraint": found.binding,
            "keeps_bounds": found.keeps_bounds,
            "verdict": said.verdict,
            "verdicts": list(said.sentences),
            "notes": {title: list(lines) for title, lines in said.notes},
            "breaks": list(found.breaks),
            "enough_cards": found.cards,
            "marginals": [
                {
                    "tier": m.tier,
                    "from_bytes": m.from_bytes,
                    "to_bytes": m.to_bytes,
                    "hit_rate": m.hit_rate,
                    "latency": m.name,
                    "latency_ms": 1e3 * m.latency,
                    "per_million_tokens": m.per_million,
                    "cost_per_hour": m.cost_per_hour,
                    "text": m.text(),
                }
                for m in found.marginals
            ],
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
            "snippets": snippets(found.chosen.stack, study.cost),
        },
        "fleet": _fleet_json(study, found),
        "headroom": _headroom_json(found.headroom),
        "today": {"tiers": found.today.stack.sizes, **_predicted(found.today, found.goal)},
        "without_cache": _predicted(found.none, found.goal),
        "load": {
            "offered_prefill": study.offered,
            **{who: _worth(one) for who, one in found.worths.items()},
        },
        "front": [
            {
                "tiers": o.stack.sizes,
                "recommended": o is found.chosen,
                "today": o is found.today,
                **_predicted(o, found.goal),
            }
            for o in found.front
        ],
        "rejected": [{"tiers": o.stack.sizes, "why": list(why)} for o, why in found.rejected],
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
    width = console.width
    parts = _report(study, found, validation)
    tables = [part for part in parts if isinstance(part, Table)]
    most = console.options.update(max_width=_WIDEST)
    # A table is as wide as its figures: cut ones would be wrong ones. Text keeps to the page.
    natural = max(Measurement.get(console, most, table).maximum for table in tables)
    console.width = max(width, natural)
    for part in parts:
        wide = isinstance(part, Table) or _pasted(part)
        # In a group: of a text alone print() would forget that it is not to be broken.
        console.print(Group(part) if wide else Constrain(part, width), crop=False)
    console.width = width


def _pasted(part: RenderableType) -> bool:
    return isinstance(part, Text) and part.no_wrap is True


def _report(
    study: Study, found: Recommendation, validation: Validation | None
) -> list[RenderableType]:
    stack, said = found.chosen.stack, answer(study, found)
    parts: list[RenderableType] = [
        *(
            Text(sentence, style="bold" if at == 1 else "")
            for at, sentence in enumerate(said.sentences)
        ),
        Text(
            f"{len(study.arrays):,} requests, {study.tokens:,} prompt tokens; "
            + (
                "predicted only: nothing was run (what the notes below say is assumed)"
                if validation is None
                else "predicted; below is what was measured"
            ),
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
    for title, lines in said.notes:
        parts += [Text(title, style="bold"), *(Text(f"· {line}") for line in lines)]
    for name, text in snippets(stack, study.cost).items():
        # to be pasted: no line is broken, in a pipe neither
        parts += [Text(), Text(f"{name}:"), Text(text, no_wrap=True, overflow="ignore")]
    return parts


_WIDEST = 240
_SHOWN = ("ttft.p50", "ttft.p90")
_TIERS = ("cpu", "disk", "remote")


def _usual(outcome: StackOutcome) -> TierConfiguration:
    """Returns the same sizes with everything else as it is by default."""
    return TierConfiguration(outcome.stack.tiers, outcome.stack.chunk_tokens)


def _table(found: Recommendation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 1, 0, 0))
    shown = (*_SHOWN, *(name for name in found.goal.slo if name not in _SHOWN))
    plain = all(o.stack == _usual(o) for o in found.front)
    how = () if plain else ("how",)
    title, decides = deciding(found.goal)
    writing = any(o.disk_writes_per_day for o in found.front)
    tiers = [n for n in _TIERS if n == "cpu" or any(n in o.stack.sizes for o in found.front)]
    lengths = {o.stack.chunk_tokens for o in found.front if o.stack.bought}
    chunk = ("chunk",) if len(lengths) > 1 else ()  # one is in the sentence above
    columns = ["pool" if name == "remote" else name for name in tiers]
    names = (*columns, *chunk, *how, "hit %", *map(latency_text, shown), title, "$/h")
    for name in ("", *names, *(("writes/day",) if writing else ())):
        left = name in ("", "how")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "how")
    for outcome in found.front:
        sizes, writes = outcome.stack.bought, outcome.disk_writes_per_day
        mark = "→" if outcome is found.chosen else ""
        table.add_row(
            f"{mark} today".strip() if outcome is found.today else mark,
            *(bytes_text(sizes[name]) if name in sizes else NONE for name in tiers),
            *((str(outcome.stack.chunk_tokens) if sizes else NONE,) if chunk else ()),
            *((how_text(outcome) if outcome.stack != found.today.stack else NONE,) if how else ()),
            f"{100 * outcome.hit_rate:.1f}",
            *(_latency(outcome, name) for name in shown),
            decides(outcome),
            f"{outcome.cost_per_hour:.4f}",
            *((bytes_text(int(writes)) if writes else NONE,) if writing else ()),
            style="bold" if outcome is found.chosen else "",
        )
    return table


def _latency(outcome: StackOutcome, name: str) -> str:
    if name not in outcome.latency:
        return NONE
    seconds = outcome.latency[name]
    if round(seconds) < 60:
        return seconds_text(seconds)
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"


def _predicted(outcome: StackOutcome, goal: Goal) -> dict[str, Any]:
    ttft = {name: 1e3 * v for name, v in outcome.latency.items() if name.startswith("ttft.")}
    decides = number(outcome, goal)
    return {
        "hit_rate": outcome.hit_rate,
        "hit_tokens": dict(outcome.hit_tokens),
        "ttft_ms": {name.partition(".")[2]: value for name, value in ttft.items()},
        "latency_ms": {name: 1e3 * value for name, value in outcome.latency.items()},
        "decides": {"by": deciding(goal)[0], "number": decides if isfinite(decides) else None},
        "capacity": outcome.capacity if isfinite(outcome.capacity) else None,
        "goodput": outcome.goodput,
        "per_million_tokens": outcome.per_million,
        "cost_per_hour": outcome.cost_per_hour,
        "disk_writes_per_day": outcome.disk_writes_per_day,
        "chunk_tokens": outcome.stack.chunk_tokens,
        "placement": outcome.stack.placement,
        "policy": outcome.stack.policy,
        "admission": outcome.stack.admission,
        "routing": outcome.stack.routing,
    }


def _fleet_json(study: Study, found: Recommendation) -> dict[str, Any] | None:
    if found.fleet is None:
        return None
    return {
        "replicas": study.replicas,
        "routing": study.routing,
        "cheaper": found.fleet.cheaper,
        "points": {
            name: {"tiers": o.stack.sizes, **_predicted(o, found.goal)}
            for name, o in found.fleet.points.items()
        },
    }


def _worth(of: Worth) -> dict[str, Any]:
    return {
        "load": of.load if isfinite(of.load) else None,
        "capped": of.capped,
        "latency_ms": {name: 1e3 * value for name, value in of.latency.items()},
        "replicas": of.replicas,
        "cards": of.cards,
        "per_hour": of.per_hour,
        "per_million_tokens": of.per_million,
    }


def _device_json(study: Study) -> dict[str, Any] | None:
    room = study.cost.device
    if room is None:
        return None
    return {
        "cards": study.cost.cards,
        "stages": study.cost.stages,
        "hardware": study.cost.hardware,
        "memory_bytes": room.memory,
        "utilisation": room.utilisation,
        "weights_bytes": room.weights,
        "activations_bytes": room.activations,
        "given_bytes": room.given,
        "kv_bytes": room.nbytes,
        "kv_tokens": room.tokens,
        "prefix_cache_bytes": study.device,
    }


def _curves(study: Study, chunk: int) -> list[dict[str, Any]]:
    if study.cost.groups(chunk):
        points = [{"capacity_bytes": n, "hit_rate": rate} for n, rate in replayed(study, chunk)]
        same = {"chunk_tokens": chunk, "kind": "prefix", "policy": "lru", "sampled": 1.0}
        return [same | {"points": points}]
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
                        "capacity_bytes": int(capacity) * study.cost.chunk_bytes(chunk),
                        "hit_rate": curve.hit_rate(int(capacity)),
                    }
                    for capacity in capacities
                ],
            }
        )
    return found


def _policy_curve(study: Study, curve: PolicyCurve) -> dict[str, Any]:
    size = study.cost.chunk_bytes(curve.chunk_tokens)
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

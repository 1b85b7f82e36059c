"""What was to be reached on a GPU, and whether it was: docs/gpu.md has the arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.gpu.hits import Hits

LONG_RUN_BYTES = 64 << 10
SHORT_RUN_BYTES = 8 << 10
LONG_RUNS_SHARE, SHORT_RUNS_SHARE = 0.9, 0.6
MOST_OF_FLOOR = 1.15
LEAST_OF_COLD = 10.0
LEAST_OF_BLEND = 3.6
# The copy that a tier's bytes can't be faster than.
_COPY = {"cpu": "h2d", "device": "d2d"}


@dataclass(frozen=True, slots=True)
class Goal:
    """``met`` is None where nothing was measured; ``found`` says why then."""

    name: str
    wanted: str
    found: str
    met: bool | None


def goals(transfer: Mapping[str, Any] | None, hits: Sequence[Hits], rag: Any) -> list[Goal]:
    """``transfer``: the document of benchmarks/transfer.py; ``rag``: that of `bench rag`; None
    where there is none."""
    return [
        _moves(transfer, "runs of 64 KiB and more", LONG_RUNS_SHARE, LONG_RUN_BYTES, None),
        _moves(transfer, "runs of 8 KiB", SHORT_RUNS_SHARE, SHORT_RUN_BYTES, SHORT_RUN_BYTES),
        *(_floor(transfer, hits, tier) for tier in _COPY),
        *(_cold(hits, tier) for tier in _COPY),
        _blend(rag),
    ]


def floor_s(hits: Hits, rates: Mapping[str, float]) -> list[float]:
    """For each hit, in seconds: its bytes at the measured rate of one long copy, and the prefill of
    the tail that the cache did not have."""
    rate = rates[_COPY[hits.tier]] * 1e9
    return [nbytes / rate + tail for nbytes, tail in zip(hits.nbytes, hits.prefill_s, strict=True)]


def better_ways(
    transfer: Mapping[str, Any], least: int, most: int | None
) -> list[Mapping[str, Any]]:
    """Of each case with runs of ``least`` to ``most`` bytes and each direction the faster way; the
    slowest of these first. Moves of less than half of the copy that they are compared with say more
    about starting than about moving."""
    best: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in transfer["gpu"]:
        size = row["run_bytes"]
        if row["direction"] not in ("h2d", "d2h") or row["nbytes"] < transfer["peak_bytes"] / 2:
            continue
        if size < least or (most is not None and size > most):
            continue
        case = tuple(row[name] for name in ("shape", "page", "tokens", "slots", "direction"))
        if case not in best or row["of_peak"] > best[case]["of_peak"]:
            best[case] = row
    return sorted(best.values(), key=lambda row: row["of_peak"])


def _moves(
    transfer: Mapping[str, Any] | None, name: str, share: float, least: int, most: int | None
) -> Goal:
    name, wanted = f"moves in {name}, of a 256 MiB pinned copy", f">= {share:.0%}"
    if not transfer or not transfer.get("gpu"):
        return Goal(name, wanted, "not measured: see transfer", None)
    found = better_ways(transfer, least, most)
    if not found:
        return Goal(name, wanted, "no case of that run length was measured", None)
    worst = found[0]
    way = worst["way"] if worst["ctas"] is None else f"{worst['way']} of {worst['ctas']} blocks"
    where = f"{worst['direction']}, {worst['shape']}, pages of {worst['page']}, {way}"
    middle = median(row["of_peak"] for row in found)
    text = f"{worst['of_peak']:.0%} at worst ({where}); {middle:.0%} in the middle of {len(found)}"
    return Goal(name, wanted, text, worst["of_peak"] >= share)


def _of(hits: Sequence[Hits], tier: str) -> Hits | None:
    return next((found for found in hits if found.tier == tier and found.ttft_s), None)


def _floor(transfer: Mapping[str, Any] | None, hits: Sequence[Hits], tier: str) -> Goal:
    name = f"TTFT of a hit in the {tier} tier, of its floor"
    wanted = f"<= {MOST_OF_FLOOR}x"
    of_tier = _of(hits, tier)
    if of_tier is None:
        return Goal(name, wanted, "no hit was measured: see long", None)
    if not transfer or not transfer.get("peaks"):
        return Goal(name, wanted, "no copy was measured: see transfer", None)
    floors = floor_s(of_tier, transfer["peaks"])
    ratios = [ttft / least for ttft, least in zip(of_tier.ttft_s, floors, strict=True)]
    text = (
        f"{median(ratios):.2f}x ({min(ratios):.2f}-{max(ratios):.2f}, n = {len(ratios)}):"
        f" {1e3 * median(of_tier.ttft_s):.1f} ms over {1e3 * median(floors):.1f} ms"
    )
    return Goal(name, wanted, text, median(ratios) <= MOST_OF_FLOOR)


def _cold(hits: Sequence[Hits], tier: str) -> Goal:
    name = f"TTFT of a cold prefill over that of a hit in the {tier} tier"
    wanted = f">= {LEAST_OF_COLD:.0f}x"
    of_tier = _of(hits, tier)
    if of_tier is None or not of_tier.cold_s:
        return Goal(name, wanted, "no hit was measured: see long", None)
    cold, hit = median(of_tier.cold_s), median(of_tier.ttft_s)
    text = f"{cold / hit:.1f}x: {1e3 * cold:.0f} ms over {1e3 * hit:.1f} ms"
    return Goal(name, wanted, text, cold / hit >= LEAST_OF_COLD)


def _blend(rag: Any) -> Goal:
    name, wanted = "TTFT of RAG without reuse over that with blend", f">= {LEAST_OF_BLEND}x"
    cells = [] if rag is None else [c for c in rag["cells"] if c["reuse"] == "blend" and c["n"]]
    found = cells[0]["speedup_ttft"] if cells else None
    if found is None:
        refused = [] if rag is None else rag.get("refused", [])
        reasons = [cell["reason"] for cell in refused if cell["reuse"] == "blend"]
        return Goal(name, wanted, reasons[0] if reasons else "not measured: see rag", None)
    interval = cells[0]["speedup_ttft_interval"] or {}
    spread = f" ({interval['low']:.2f}-{interval['high']:.2f})" if interval else ""
    return Goal(name, wanted, f"{found:.2f}x{spread}, n = {cells[0]['n']}", found >= LEAST_OF_BLEND)

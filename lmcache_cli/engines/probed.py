"""Costs that ``lmcache probe --model`` measured on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_core.layout import KVLayout
from cache_core.prefill import PrefillCost
from lmcache_cli.engines.cost import CostModel, TierCost
from lmcache_cli.errors import UserError
from lmcache_cli.probe_file import load_probe


@dataclass(frozen=True, slots=True)
class ProbedEngine:
    """What a probe tells of an engine. ``prefill_points`` are (new, cached, median seconds).
    ``asked`` is how the model was named, ``embedded`` for the embedded one; ``layout`` is of one
    token."""

    source: str
    model: str
    asked: str
    layout: KVLayout
    facts: Mapping[str, Any]
    prefill: PrefillCost
    prefill_range: tuple[PrefillCost, PrefillCost]
    decode_s: float
    decode_token_s: float
    tiers: Mapping[str, TierCost]
    prefill_points: tuple[tuple[int, int, float], ...]

    def cost_model(self) -> CostModel:
        """For the simulated engine. A tier that was not measured keeps its default."""
        tiers = dict(CostModel().tiers) | dict(self.tiers)
        if "device" not in self.tiers and "cpu" in self.tiers:
            tiers["device"] = self.tiers["cpu"]  # on a CPU both are host memory
        return CostModel(
            self.prefill.a,
            self.prefill.b,
            self.prefill.c,
            self.decode_s,
            self.decode_token_s,
            tiers,
        )


def read_probed(path: Path) -> ProbedEngine:
    """Raises ``UserError`` for a file that is no probe, or is one without an engine."""
    engine = load_probe(path).get("engine")
    if engine is None:
        raise UserError(
            f"--probe: {path} has no engine's costs; make them: lmcache probe --model embedded"
        )
    try:
        return probed_engine(engine, str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--probe: {path} is damaged ({error}); make it anew") from error


def probed_engine(engine: Mapping[str, Any], source: str) -> ProbedEngine:
    """From ``engine`` of a probe file, or what ``dataclasses.asdict`` makes of a fresh probe.
    Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything else."""
    low, high = engine["prefill_range"]
    facts = engine["facts"]
    return ProbedEngine(
        source,
        str(facts["model"]),
        str(engine["asked"]),
        KVLayout(**engine["layout"]),
        facts,
        PrefillCost(**engine["prefill"]),
        (PrefillCost(**low), PrefillCost(**high)),
        float(engine["decode_s"]),
        float(engine["decode_token_s"]),
        {name: TierCost(**cost) for name, cost in engine["tiers"].items()},
        tuple(
            (int(f["new"]), int(f["cached"]), float(f["time"]["median"]))
            for f in engine["prefill_figures"]
        ),
    )

"""The costs of serving: the formula that is the simulated engine's clock, and what
``lmcache probe --model`` measured here (``probe.json``), read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache_core.groups import KeptLayer
from cache_core.layout import KVLayout
from cache_core.sizing.prefill_cost import PrefillCost
from lmcache_cli.errors import UserError


@dataclass(frozen=True, slots=True)
class TierCost:
    """Loading ``nbytes`` in n chunks takes ``call_s + n * fixed_s + nbytes / bytes_per_s``."""

    bytes_per_s: float
    fixed_s: float = 0.0
    call_s: float = 0.0

    def seconds(self, chunks: int, nbytes: float) -> float:
        """Returns the seconds to load ``nbytes`` in ``chunks`` chunks from the tier; 0 for no
        chunks."""
        if not chunks:
            return 0.0
        return self.call_s + chunks * self.fixed_s + nbytes / self.bytes_per_s


def _tiers() -> Mapping[str, TierCost]:
    return {
        "device": TierCost(12e9, 1e-6),
        "cpu": TierCost(8e9, 2e-6),
        "disk": TierCost(1.5e9, 100e-6),
        "remote": TierCost(0.8e9, 500e-6),
    }


@dataclass(frozen=True, slots=True)
class CostModel:
    """The seconds that each part of a request takes.

    Prefill of n tokens after m cached ones: ``a + b n + c n (m + n/2)``: a per forward, b per token
    in the dense layers, c per query-key pair in attention. The defaults are a fit to SmolLM2-135M
    in float32 on two cores of an EPYC 9004 (docs/log.md); they make the simulator plausible, not
    true: ``lmcache probe --model`` measures those of this machine.
    """

    a: float = 0.03
    b: float = 1.5e-3
    c: float = 5.7e-7
    decode_s: float = 0.06
    decode_token_s: float = 0.0
    """Seconds that a decode step takes in addition per token before it."""
    tiers: Mapping[str, TierCost] = field(default_factory=_tiers)

    def prefill_s(self, new: int, cached: int) -> float:
        """Returns the seconds to the first token's logits, with the KV of ``cached`` tokens
        loaded."""
        return self.a + self.b * new + self.c * new * (cached + new / 2)

    def load_s(self, tier: str, chunks: int, chunk_bytes: int) -> float:
        """Returns the seconds that bringing ``chunks`` chunks from a tier into the engine takes."""
        return self.tiers[tier].seconds(chunks, chunks * chunk_bytes)

    def step_s(self, there: int) -> float:
        """Returns the seconds of one decode step after ``there`` tokens."""
        return self.decode_s + self.decode_token_s * there


@dataclass(frozen=True, slots=True)
class ProbedEngine:
    """The costs and facts of an engine as a probe reports them. ``prefill_points`` are (new,
    cached, median seconds). ``asked`` is how the model was named, ``embedded`` for the embedded
    one; ``layout`` is of one token, ``kept`` the layers of a model whose layers keep different
    things."""

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
    kept: tuple[KeptLayer, ...] = ()

    def cost_model(self) -> CostModel:
        """Returns the cost model for the simulated engine. A tier that was not measured keeps its
        default."""
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
    """Reads an engine's costs from a probe file. Raises ``UserError`` for a file that is no probe,
    or is one without an engine."""
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
    """Makes the probed engine of ``engine`` in a probe file, or of what ``dataclasses.asdict``
    makes of a fresh probe. Raises ``KeyError``, ``TypeError`` or ``ValueError`` for anything
    else."""
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
        tuple(KeptLayer(**layer) for layer in engine.get("kept") or ()),
    )


PROBE_SCHEMA = "lmcache.probe/1"


def load_probe(path: Path) -> dict[str, Any]:
    """Reads a probe file. Raises ``UserError`` for one that can't be read or is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != PROBE_SCHEMA:
            raise UserError(f"--probe: {path} is {document['schema']}, not {PROBE_SCHEMA}")
    except OSError as error:
        raise UserError(f"--probe: {path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--probe: {path} is no probe file; make one: lmcache probe") from error
    return document

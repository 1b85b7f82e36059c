"""Blend on verified models only, with the settings that were found for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lmcache_cli.bench.cells import Cell
from lmcache_cli.bench.plan import BenchOptions, Plan
from lmcache_cli.bench.refusals import Refusals
from lmcache_cli.engines.engine import Blending, CacheSpec, Engine
from lmcache_cli.errors import CellMissingError
from lmcache_cli.passports import require_passport


def verified(
    plan: Plan,
    engine: Engine,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    refusals: Refusals | None = None,
) -> Plan:
    """The plan with the model's passport in its blend cells, and its calibrated settings where no
    flag was given. Of a model that has not passed, unless --unverified, these cells go to
    ``refusals``; without it ``CellMissingError`` is raised."""
    options = plan.options
    blends = any(cell.spec.mode == "blend" for cell in plan.cells)
    if not blends or not isinstance(engine, Blending):
        return plan
    if options.unverified:
        warn(f"blend on {engine.model} is not verified; lmcache verify --blend does that")
        return plan
    subject, given = engine.blend_subject(), options.blend_passport
    try:
        path, passport = require_passport(subject, given, options.model, options.dtype)
    except CellMissingError as error:
        for cell in plan.cells:
            if cell.spec.mode == "blend":
                (refusals or Refusals()).add(cell, error)
        return plan
    found = _found(options, passport.calibration)
    if found:
        text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())
        say(f"calibrated for {engine.model}: {text} ({path})")

    def settled(cell: Cell) -> Cell:
        if cell.spec.mode != "blend":
            return cell
        spec: CacheSpec = replace(cell.spec, passport=path, **found)
        return replace(cell, spec=spec)

    return replace(plan, cells=tuple(map(settled, plan.cells)))


def _found(options: BenchOptions, calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Calibrated settings that no flag overrides. They belong together with their selection, so
    another one, or vLLM's, gets none of them."""
    chosen = calibration.get("chosen")
    given = options.blend_selection
    if not chosen or options.engine == "vllm" or given not in (None, chosen["selection"]):
        return {}
    # Requests without a system prompt have chunks too.
    encoding = "auto" if chosen["encoding"] == "system" else chosen["encoding"]
    wanted = {
        "ratio": (options.blend_ratio, float(chosen["ratio"])),
        "check_layer": (options.blend_check_layer, int(chosen["check_layer"])),
        "encoding": (options.blend_encoding, str(encoding)),
    }
    return {name: value for name, (flag, value) in wanted.items() if flag is None}

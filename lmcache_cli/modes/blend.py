"""Blend as a mode: its settings, the models it is verified for, and the hits to expect."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cache_core.blend.certificate import Certificate, CertificateError, Subject, checked_certificate
from lmcache_cli.bench.cells import BenchPlan, Cell, Refusals
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.engine import BlendEngine, Engine
from lmcache_cli.engines.transformers.blend.prompt import Prompts
from lmcache_cli.errors import CellMissingError, UserError
from lmcache_cli.machine import cache_home
from lmcache_cli.modes.mode import Oracle, Sweep, one_of
from lmcache_cli.modes.prefix import HitOracle, Prefix, varied
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.sizes import parse_list
from workloads.request import Request


def verified(
    plan: BenchPlan,
    engine: Engine,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    refusals: Refusals | None = None,
) -> BenchPlan:
    """Puts the model's certificate into the plan's blend cells, and calibrated settings where no
    flag was given. Of a model that has not passed, unless --unverified, these cells go to
    ``refusals``; without it ``CellMissingError`` is raised."""
    options = plan.options
    blends = any(cell.spec.blend for cell in plan.cells)
    if not blends or not isinstance(engine, BlendEngine):
        return plan
    if options.unverified:
        warn(f"blend on {engine.model} is not verified; lmcache verify blend does that")
        return plan
    subject, given = engine.blend_subject(), options.blend_certificate
    try:
        path, certificate = find_certificate(
            subject, given, options.model, options.dtype, options.device
        )
    except CellMissingError as error:
        for cell in plan.cells:
            if cell.spec.blend:
                (refusals or Refusals()).add(cell, error)
        return plan
    found = _found(options, certificate.calibration)
    if found:
        text = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in found.items())
        say(f"calibrated for {engine.model}: {text} ({path})")

    def settled(cell: Cell) -> Cell:
        if cell.spec.blend is None:
            return cell
        settings = replace(cell.spec.blend, certificate=path, **found)
        return replace(cell, spec=replace(cell.spec, blend=settings))

    return replace(plan, cells=tuple(map(settled, plan.cells)))


def _found(options: BenchOptions, calibration: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the calibrated settings that no flag overrides. They belong together with their
    selection, so another one, or vLLM's, gets none of them."""
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


BLEND_SELECTIONS = ("hkvd", "query", "first", "random", "none", "full")
VLLM_SELECTIONS = ("first", "random")
"""The selections that choose before any layer has run: vLLM's model is run as it is."""
BLEND_ENCODINGS = ("auto", "system", "bos", "none")


class Blend(Prefix):
    """The mode ``blend``: our tiers, of which passages are served wherever they stand."""

    uses = (
        "blend_ratio",
        "blend_selection",
        "blend_check_layer",
        "blend_narrow",
        "blend_encoding",
        "blend_certificate",
        "unverified",
    )

    def specs(self, sweep: Sweep) -> list[CacheSpec]:
        ways = [CacheSpec(1, blend=settings) for settings in _settings(sweep.options)]
        return varied(super().specs(sweep), ways)

    def facts(self, spec: CacheSpec) -> Mapping[str, Any]:
        settings = asdict(spec.blend) if spec.blend else {}
        return {"blend": {name: value for name, value in settings.items() if name != "certificate"}}

    def cold(
        self, spec: CacheSpec, capacities: Mapping[str, int | None], bos: int | None
    ) -> Oracle:
        return ContentOracle(spec, capacities, bos)


def _settings(options: BenchOptions) -> list[BlendSettings]:
    """Returns the settings of every ratio under every selection and check layer. Raises
    ``UserError``."""
    default = BlendSettings()
    ratios = parse_list(options.blend_ratio or str(default.ratio), "--blend-ratio", _share)
    layers = parse_list(
        options.blend_check_layer or str(default.check_layer), "--blend-check-layer", _layer
    )
    selections = parse_list(
        options.blend_selection or default.selection,
        "--blend-selection",
        lambda name, flag: one_of(flag, name, BLEND_SELECTIONS),
    )
    if options.engine == "vllm":
        # What chooses by layers can't be asked of vLLM; the default is none of the user's wishes.
        selections = selections if options.blend_selection else ["first"]
        for name in selections:
            if name not in VLLM_SELECTIONS:
                known = ", ".join(VLLM_SELECTIONS)
                raise UserError(f"--blend-selection: with --engine vllm it is one of {known}")
    encoding = options.blend_encoding or default.encoding
    one_of("--blend-encoding", encoding, BLEND_ENCODINGS)
    if options.blend_narrow < 1:
        raise UserError(f"--blend-narrow: {options.blend_narrow} is too small; at least 1 layer")
    return [
        BlendSettings(
            ratio=ratio,
            selection=selection,
            check_layer=layer,
            narrow_layers=options.blend_narrow,
            encoding=encoding,
        )
        for selection in selections
        for layer in layers
        for ratio in ratios
    ]


def _share(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a number from 0 to 1") from None
    if not 0 <= value <= 1:
        raise UserError(f"{flag}: {text} is not from 0 to 1")
    return value


def _layer(text: str, flag: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{flag}: {text!r} is not a layer's number, from 0 on")
    return int(text)


class ContentOracle(HitOracle):
    """An oracle of hits at any position."""

    def __init__(
        self, spec: CacheSpec, capacity: Mapping[str, int | None], bos: int | None
    ) -> None:
        super().__init__(spec, capacity)
        settings = spec.blend or BlendSettings()
        self._prompts = Prompts(self._namespace, settings.encoding, bos)
        self._full = settings.full_prefill

    def expect(self, request: Request) -> int:
        """Returns the hit tokens of the next request and remembers it."""
        if self._full:
            return 0
        prompt = self._prompts.of(request)
        pieces = (*prompt.exact, *prompt.pieces)
        hit, rows = self._cache.acquire_any([piece.key for piece in pieces])
        self._cache.release(hit)
        held = [pieces[row] for row in rows]
        there = set(hit.keys)
        self._cache.touch([piece.key for piece in held])
        missing = {p.key: p for p in pieces if p.key not in there}
        if missing:
            self._cache.store(list(missing), None)
            prompt.matcher.stored(prompt.ids, [p for p in missing.values() if p in prompt.pieces])
        if not all(piece.key in there for piece in prompt.exact):
            held = [piece for piece in held if piece not in prompt.exact]
        return sum(piece.stop - piece.start for piece in held)


_NAME_LENGTH = 60


def certificate_path(subject: Subject) -> Path:
    """Returns the path of a model's own certificate below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(subject.model).name)[:_NAME_LENGTH]
    return cache_home() / "blend" / f"{name}-{subject.digest[:16]}.json"


def find_certificate(
    subject: Subject, given: Path | None, model: str | None, dtype: str, device: str = "cpu"
) -> tuple[Path, Certificate]:
    """Reads the model's certificate from ``given`` or its own path. ``model``, ``dtype`` and
    ``device`` are as the user gave them. Raises ``CellMissingError`` with the command for it."""
    path = given or certificate_path(subject)
    if given is None and not path.exists():
        lack = f"{subject.model} in {subject.dtype} has not passed the gates of blend"
    else:
        try:
            return path, checked_certificate(path, subject)
        except CertificateError as error:
            lack = str(error)
    command = "lmcache verify blend" + (f" --model {model}" if model else "")
    if device != "cpu":
        command += f" --device {device}"
    if dtype not in ("auto", "float32"):
        command += f" --dtype {dtype}"
    if given is not None:
        command += f" --out {given}"
    raise CellMissingError(f"--reuse blend: {lack}; run: {command}, or add --unverified")

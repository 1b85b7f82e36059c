"""Blend as a mode: its settings, the models it is verified for, and the hits to expect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cache_core.blend.certificate import (
    BlendTerms,
    CertificateError,
    Subject,
    certificate_in,
    checked_certificate,
)
from cache_core.blend.seen import LEAST_SEEN, SELECTION, learning_tokens, sighting_worth
from lmcache_cli.bench.cells import BenchPlan, Cell, Refusals
from lmcache_cli.engines.cache_spec import BlendSettings, CacheSpec
from lmcache_cli.engines.engine import BlendEngine, Engine
from lmcache_cli.engines.transformers.blend.prompt import ENCODINGS, Prompts
from lmcache_cli.errors import CellMissingError, UserError
from lmcache_cli.machine import cache_home
from lmcache_cli.modes.mode import Oracle, Sweep, one_of
from lmcache_cli.modes.prefix import HitOracle, Prefix, varied
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.sizes import parse_list
from workloads.request import Part, Prompt, Request

_LEAST_BEFORE = 1 / 16
"""What must fit before a passage, as a share of it, for it to be worth teaching: each time that it
is computed counts half as much."""


def verified(
    plan: BenchPlan,
    engine: Engine,
    say: Callable[[str], None],
    warn: Callable[[str], None],
    refusals: Refusals | None = None,
) -> BenchPlan:
    """Puts the model's certificate into the plan's blend cells. Of a model that has not passed,
    unless --unverified, these cells go to ``refusals``; without it ``CellMissingError`` is
    raised."""
    options = plan.options
    blends = any(cell.spec.blend for cell in plan.cells)
    if not blends or not isinstance(engine, BlendEngine):
        return plan
    if options.unverified:
        warn(f"blend on {engine.model} is not verified yet; lmcache verify blend does that")
        return plan
    subject, given = engine.blend_subject(), options.blend_certificate
    # At ratio 0 a cell is there to compare with, and says so.
    asked = [c.spec.blend for c in plan.cells if c.spec.blend and c.spec.blend.ratio]
    terms = [BlendTerms(blend.ratio, blend.encoding) for blend in asked] or [BlendTerms(1.0)]
    try:
        path = find_certificate(
            subject, given, options.model, options.dtype, options.device, min(terms)
        )
    except CellMissingError as error:
        for cell in plan.cells:
            if cell.spec.blend:
                (refusals or Refusals()).add(cell, error)
        return plan
    say(f"verified: {engine.model} ({path})")

    def settled(cell: Cell) -> Cell:
        if cell.spec.blend is None:
            return cell
        settings = replace(cell.spec.blend, certificate=path)
        return replace(cell, spec=replace(cell.spec, blend=settings))

    return replace(plan, cells=tuple(map(settled, plan.cells)))


class Blend(Prefix):
    """The mode ``blend``: our tiers, of which passages are served wherever they stand."""

    uses = (
        "blend_ratio",
        "blend_encoding",
        "blend_certificate",
        "unverified",
    )

    def specs(self, sweep: Sweep) -> list[CacheSpec]:
        ways = [CacheSpec(1, blend=settings) for settings in _settings(sweep.options)]
        return varied(super().specs(sweep), ways)

    def facts(self, spec: CacheSpec) -> Mapping[str, Any]:
        blend = spec.blend or BlendSettings()
        return {"blend": {"ratio": blend.ratio, "selection": SELECTION, "encoding": blend.encoding}}

    def warming(
        self, requests: Sequence[Request], spec: CacheSpec, capacities: Mapping[str, int | None]
    ) -> Sequence[Request]:
        """Returns requests over the same parts, as many in each, until all were seen often enough:
        what a service has behind it after a while."""
        parts = [_parts(request) for request in requests]
        passages = [part for each in parts for part in each[1:-1]]
        size = max((len(each) - 2 for each in parts), default=0)
        if size < 2:
            return requests
        frame = len(parts[0][0].ids) + len(parts[0][-1].ids)
        room = max(len(request.token_ids) for request in requests) - frame
        lengths = [len(part.ids) for part in passages]
        made = []
        together = learning_tokens((capacities.get("cpu") or 0) * spec.chunk_tokens)
        for number, order in enumerate(lessons(lengths, size, room, together)):
            name = f"warm{number}"
            mine = (parts[0][0], *(passages[place] for place in order), parts[0][-1])
            made.append(Prompt(name, name, mine).request(0.0, 1))
        return made

    def cold(
        self, spec: CacheSpec, capacities: Mapping[str, int | None], bos: int | None
    ) -> Oracle:
        return ContentOracle(spec, capacities, bos)


def lessons(
    lengths: Sequence[int],
    size: int,
    room: int | None = None,
    together: int | None = None,
    seed: int = 0,
) -> Iterator[list[int]]:
    """Yields orders of passages of ``lengths`` tokens, at most ``size`` of them and ``room`` tokens
    at a time, until each was seen often enough behind others. Passages of ``together`` tokens are
    learnt before the next ones are begun, and are seen behind these and what is known. A passage
    that fits behind no other, or behind next to nothing, is left out."""
    rng, seen, sizes = np.random.default_rng(seed), np.zeros(len(lengths)), np.array(lengths)
    most, total = min(size, len(lengths)), sum(lengths)
    room, together = room or total, together or total
    fits = np.array([_behind(place, lengths, most, room) for place in range(len(lengths))])
    while most > 1:
        waiting = np.flatnonzero((seen < LEAST_SEEN) & fits)
        waiting = waiting[
            : max(1, int(np.searchsorted(np.cumsum(sizes[waiting]), together, "right")))
        ]
        if not len(waiting):
            return
        rng.shuffle(waiting)
        for start in range(0, len(waiting), most - 1):
            some = waiting[start : start + most - 1]
            some = some[np.argsort(seen[some], kind="stable")]
            others = rng.permutation(np.setdiff1d(np.arange(len(lengths)), some))
            # What is reused already costs least to stand before the others.
            others = others[np.argsort(seen[others] < LEAST_SEEN, kind="stable")]
            begun = np.isin(others, waiting) | (seen[others] >= LEAST_SEEN)
            order: list[int] = []
            left = room
            for place in [*some.tolist(), *others[begun].tolist(), *others[~begun].tolist()]:
                if len(order) < most and lengths[place] <= left:
                    order.insert(0, place)
                    left -= lengths[place]
                    if place in others[~begun]:
                        break  # right behind the lead it is exact, and not begun: one can be there
            before = 0
            for place in order:
                seen[place] += sighting_worth(before, lengths[place])
                before += lengths[place]
            if len(order) > 1:
                yield order


def _behind(place: int, lengths: Sequence[int], most: int, room: int) -> bool:
    """Returns whether a passage can stand behind others that are as much as ``_LEAST_BEFORE`` of
    its length, in a prompt of ``most`` passages and ``room`` tokens."""
    left = room - lengths[place]
    others = sorted(length for at, length in enumerate(lengths) if at != place and length <= left)
    before = min(left, sum(others[-(most - 1) :]))
    return before > 0 and before >= _LEAST_BEFORE * lengths[place]


def _parts(request: Request) -> list[Part]:
    ids = request.token_ids
    return [Part(part.kind, ids[part.start : part.end]) for part in request.segments]


def _settings(options: BenchOptions) -> list[BlendSettings]:
    """Returns the settings of every ratio. Raises ``UserError``."""
    default = BlendSettings()
    ratios = parse_list(options.blend_ratio or str(default.ratio), "--blend-ratio", _share)
    encoding = options.blend_encoding or default.encoding
    one_of("--blend-encoding", encoding, ENCODINGS)
    return [BlendSettings(ratio, encoding) for ratio in ratios]


def _share(text: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{flag}: {text!r} is not a number from 0 to 1") from None
    if not 0 <= value <= 1:
        raise UserError(f"{flag}: {text} is not from 0 to 1")
    return value


class ContentOracle(HitOracle):
    """An oracle of hits at any position."""

    def __init__(
        self, spec: CacheSpec, capacity: Mapping[str, int | None], bos: int | None
    ) -> None:
        super().__init__(spec, capacity)
        settings = spec.blend or BlendSettings()
        self._prompts = Prompts(self._namespace, settings.encoding, bos, capacity)
        self._ratio = settings.ratio

    def expect(self, request: Request) -> int:
        """Returns the hit tokens of the next request and remembers it."""
        if self._ratio >= 1:
            return 0
        prompt = self._prompts.of(request)
        usable = self._prompts.usable(prompt, self._held, self._ratio)
        there = self._held([way.key for way in usable.values()])
        held = {piece: way for piece, way in usable.items() if way.key in there}
        self._cache.touch([way.key for way in held.values()])
        missing = [piece for piece in prompt.pieces if piece not in held]
        if self._ratio:
            self._prompts.seen.begin_anew(piece.key for piece in missing)
        stored = self._held([piece.key for piece in missing])
        begins, gone = self._prompts.beginnings.keep(prompt, held, self._ratio)
        parts = [piece for piece in missing if not prompt.is_lead(piece)]
        for piece in parts:
            none = np.zeros(piece.stop - piece.start, dtype=np.float32)
            self._prompts.seen.add(piece.key, none, prompt.worth(piece))
        prompt.matcher.stored(prompt.ids, parts)
        self._cache.discard(gone)
        alone = [piece.key for piece in missing if piece.key not in stored]
        averages = [prompt.average(piece) for piece in self._prompts.learnt(prompt, parts)]
        for some in (list(begins.values()), alone, averages):
            if some:
                self._cache.store(some, None)
        return sum(piece.stop - piece.start for piece in held)

    def _held(self, keys: Sequence[bytes]) -> frozenset[bytes]:
        hit, _ = self._cache.acquire_any(keys)
        self._cache.release(hit)
        return frozenset(hit.keys)


def certificates() -> Path:
    """Returns the folder of certificates below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return cache_home() / "blend"


def find_certificate(
    subject: Subject,
    given: Path | None,
    model: str | None,
    dtype: str,
    device: str,
    terms: BlendTerms,
) -> Path:
    """Checks the model's certificate, at ``given`` or found. Returns its path. ``model``,
    ``dtype`` and ``device`` are as the user gave them. Raises ``CellMissingError`` with the command
    for it."""
    try:
        path = given or certificate_in(certificates(), subject, terms)
        checked_certificate(path, subject, terms)
        return path
    except CertificateError as error:
        lack = str(error)
    command = "lmcache verify blend" + (f" --model {model}" if model else "")
    if device != "cpu":
        command += f" --device {device}"
    if dtype not in ("auto", "float32"):
        command += f" --dtype {dtype}"
    if terms.ratio < BlendSettings().ratio:
        command += f" --blend-ratio {terms.ratio:g}"
    if terms.encoding != BlendSettings().encoding:
        command += f" --blend-encoding {terms.encoding}"
    if given is not None:
        command += f" --out {given}"
    raise CellMissingError(f"--reuse blend: {lack}; run: {command}, or add --unverified")

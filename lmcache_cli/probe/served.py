"""Measures the costs of serving by requests alone: what an engine's own server takes for prefill
behind what is on the device, for loads from each tier below it, and for decode steps.

What a server takes beside the work, HTTP included, is in the fixed cost of a prefill, because TTFT
is what is predicted.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np

from cache_core.sizing.prefill_cost import PrefillCost, nonnegative_fit
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.http.engine import SALT_TOKENS
from lmcache_cli.engines.measured_costs import TierCost
from lmcache_cli.engines.vllm.engine import VllmEngine, VllmSession
from lmcache_cli.engines.vllm.flags import OWN_BLOCK_TOKENS
from lmcache_cli.output import Say
from lmcache_cli.probe.engine import (
    EngineProbe,
    LoadFigure,
    PrefillFigure,
    StepFigure,
    fitted_prefill,
    fitted_step,
)
from lmcache_cli.probe.media import ProbeError, figure_of

_NEW = (32, 128, 512)
_BEHIND_A_LOAD = 32
"""Tokens that are computed behind what is loaded."""
_LEAST_LOAD = 4 * OWN_BLOCK_TOKENS
"""What the device still has of a head that was put out is a block or two."""
_ANSWER = 9
_NO_TIME = 1e-18
"""The least seconds of a byte: what is faster can't be told from nothing."""
_PLACES = 4
"""The lengths at which loads are measured."""


class ServedProbe:
    """Probes an engine's servers with prompts of up to ``context`` tokens, or as many as the
    shortest load takes that can be measured. The first stays up, and gives a reference of the
    machine's speed (:meth:`prefill_s`) until :meth:`close`."""

    def __init__(
        self,
        engine: VllmEngine,
        folder: Path,
        context: int,
        chunk_tokens: int,
        tiers: Sequence[str] = ("cpu",),
    ) -> None:
        self._shortest = _LEAST_LOAD // chunk_tokens * chunk_tokens or chunk_tokens
        context = max(context, self._shortest + _BEHIND_A_LOAD)
        self._engine, self._context, self._chunk = engine, context, chunk_tokens
        self._vocabulary = int(engine.config.vocab_size)
        self._draw = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = TemporaryDirectory(dir=folder, prefix=".lmcache-probe-")
        # No more than the longest prompt: the next one puts out what a load is to bring back.
        blocks = -(-(context + _ANSWER + SALT_TOKENS) // OWN_BLOCK_TOKENS)
        device = blocks * OWN_BLOCK_TOKENS * engine.token_bytes()
        room = 4 * engine.token_bytes() * (context + 4 * chunk_tokens) + (8 << 20)
        self._sessions: dict[str, VllmSession] = {}
        for tier in tiers:
            spec = CacheSpec(
                chunk_tokens,
                {"device": device, tier: room},
                salt=f"probe {uuid4().hex}",
                folder=Path(self._folder.name) / tier,
            )
            self._sessions[tier] = engine.open(spec, context + _ANSWER)
        self._first = self._sessions[tiers[0]]

    def measure(self, repeats: int, asked: str, say: Say = lambda text: None) -> EngineProbe:
        """Measures every point once a round, in an order drawn anew, and fits the costs. Raises
        :class:`ProbeError` for a server that does not find again what it must have."""
        points: dict[_Point, Callable[[_Point], list[float]]] = {}
        points |= dict.fromkeys(self._prefills(), self._prefill)
        points |= dict.fromkeys(self._steps(), self._step)
        times: dict[_Point, list[float]] = {point: [] for point in points}
        order = random.Random(0)
        for number in range(repeats):
            say(f"engine {self._engine.model}: round {number + 1} of {repeats}")
            self._engine.bring_up(self._first)
            for point in order.sample(list(points), len(points)):
                times[point] += points[point](point)
        prefills = [
            PrefillFigure(point.new, point.cached, figure_of(values, "s"))
            for point, values in times.items()
            if not point.step
        ]
        steps = [
            StepFigure(point.cached, figure_of(values, "s"))
            for point, values in times.items()
            if point.step
        ]
        cost = fitted_prefill(prefills, lambda figure: figure.median)
        loads: list[LoadFigure] = []
        for tier, session in self._sessions.items():
            say(f"engine {self._engine.model}: loads from {tier}")
            self._engine.bring_up(session)
            loads += self._loads(tier, session, repeats, cost)
            if session is not self._first:
                session.close()
        step = fitted_step(steps)
        return EngineProbe(
            self._engine.facts(),
            asked,
            self._engine.layout(1),
            (),
            cost,
            (
                fitted_prefill(prefills, lambda figure: figure.low),
                fitted_prefill(prefills, lambda figure: figure.high),
            ),
            max(abs(cost.seconds(f.new, f.cached) / f.time.median - 1) for f in prefills),
            *step,
            {tier: _load_cost([f for f in loads if f.tier == tier]) for tier in self._sessions},
            tuple(prefills),
            tuple(steps),
            tuple(loads),
        )

    def prefill_s(self, tokens: int) -> float:
        """Returns the seconds to the first token of a prompt of so many tokens that nothing has."""
        return self._ask(self._first, self._fresh(tokens), {})[0]

    def close(self) -> None:
        """Ends the servers and removes their files."""
        for session in self._sessions.values():
            session.close()
        self._folder.cleanup()

    def _prefills(self) -> list[_Point]:
        half = self._context // 2
        cached = [0, *(_blocks(self._context // part) for part in (4, 2))]
        lengths = sorted({*(n for n in _NEW if n < half), half})
        points = [_Point(new, behind) for behind in cached for new in lengths]
        return [*dict.fromkeys(points), _Point(self._context, 0)]

    def _steps(self) -> list[_Point]:
        lengths = sorted({min(64, self._context // 2), self._context // 2, self._context})
        return [_Point(1, length, step=True) for length in lengths]

    def _prefill(self, point: _Point) -> list[float]:
        head, wanted = self._fresh(point.cached), {"device": point.cached}
        if head:
            self._ask(self._first, head, {})
        return self._ask(self._first, [*head, *self._fresh(point.new)], wanted)[:1]

    def _step(self, point: _Point) -> list[float]:
        seconds = self._ask(self._first, self._fresh(point.cached), {}, _ANSWER)
        # A mean: on a busy machine several tokens are read at once, and most gaps are none.
        return [(seconds[-1] - seconds[0]) / (len(seconds) - 1)]

    def _loads(
        self, tier: str, session: VllmSession, repeats: int, prefill: PrefillCost
    ) -> list[LoadFigure]:
        """Returns what loads take: a prompt whose head the device no longer has, but the tier, less
        the prefill of the rest."""
        most, token_bytes = self._context - _BEHIND_A_LOAD, self._engine.token_bytes()
        parts = [most * (place + 1) // _PLACES for place in range(_PLACES)]
        lengths = sorted({max(self._shortest, n // self._chunk * self._chunk) for n in parts})
        times: dict[int, list[float]] = {length: [] for length in lengths}
        loaded = dict.fromkeys(lengths, 0)
        for _ in range(repeats):
            for length in lengths:
                head = self._fresh(length)
                self._ask(session, head, {})
                self._ask(session, self._fresh(self._context), {})
                ids = [*head, *self._fresh(_BEHIND_A_LOAD)]
                seconds, hits = session.complete(ids, 1)
                loaded[length] = hits.get(tier, 0)
                if sum(hits.values()) != length or not loaded[length]:
                    raise ProbeError(
                        f"engine probe failed: of {length} tokens in {tier} a request found {hits}"
                    )
                rest = prefill.seconds(_BEHIND_A_LOAD, length)
                times[length].append(max(0.0, seconds[0] - rest))
        return [
            LoadFigure(
                tier,
                self._chunk,
                -(-count // self._chunk),
                count * token_bytes,
                figure_of(times[length], "s"),
            )
            for length, count in loaded.items()
        ]

    def _ask(
        self, session: VllmSession, ids: Sequence[int], wanted: dict[str, int], answer: int = 1
    ) -> list[float]:
        """Returns the seconds to each token; checks what was hit by tier, of those ``wanted``."""
        seconds, hits = session.complete(ids, answer)
        found = {tier: count for tier, count in hits.items() if count}
        if found != {tier: count for tier, count in wanted.items() if count}:
            raise ProbeError(
                f"engine probe failed: a prompt of {len(ids)} tokens was to find {wanted}, and"
                f" found {found}"
            )
        return seconds

    def _fresh(self, tokens: int) -> list[int]:
        """Returns tokens that no prompt had."""
        ids: list[int] = self._draw.integers(0, self._vocabulary, tokens).tolist()
        return ids


@dataclass(frozen=True, slots=True)
class _Point:
    """What is timed: ``new`` tokens behind ``cached`` ones on the device, or a decode step."""

    new: int
    cached: int
    step: bool = False


def _blocks(tokens: int) -> int:
    return tokens // OWN_BLOCK_TOKENS * OWN_BLOCK_TOKENS


def _load_cost(figures: Sequence[LoadFigure]) -> TierCost:
    """Fits a tier's costs. With one chunk length what a chunk costs is in the rate of its bytes."""
    rows = np.array([(1.0, f.nbytes) for f in figures], dtype=np.float64)
    found = nonnegative_fit(rows, np.array([f.time.median for f in figures]))
    call, per_byte = (0.0, 0.0) if found is None else map(float, found)
    return TierCost(1 / max(per_byte, _NO_TIME), 0.0, call)

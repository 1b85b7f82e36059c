"""The two situations in which a connector's scheduler side costs most: many long requests that
decode, and many that wait."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.vllm_sched.engine import BUDGET, CHUNK_TOKENS, Engine, Setup, tokens
from benchmarks.vllm_sched.timing import Spent
from benchmarks.vllm_sim.layers import KINDS

Figures = dict[str, float]
COLLECTIONS = "collections of garbage, number"
_DECODED = 2 * CHUNK_TOKENS  # steps of one repeat
_DOCUMENTS = 16
_ADDED = 2 * CHUNK_TOKENS  # tokens that a document grows by
_PASSES = 10
_TRIES = 100  # passes in which something that is held must have been loaded
_QUIET_S, _QUIET_LOOKS = 0.05, 4
_PATIENCE_S = 300.0


class Decode:
    """``running`` requests of ``context`` tokens each get a token in each step. They fill chunks in
    half of the steps, a part of them in each, and in the others none does. The tier is full when
    the prompts have been stored: each chunk that is new evicts one.

    Figures are in microseconds per running request and step."""

    def __init__(
        self,
        connector: str,
        held: int,
        context: int,
        running: int,
        repeats: int,
        layers: str = "full",
    ) -> None:
        # Those that are through with their prompts decode while others' are computed.
        meanwhile = running * context // (BUDGET - running) + 2
        longest = context + meanwhile + (repeats + 2) * _DECODED
        room = running * (context // CHUNK_TOKENS)
        room *= len(KINDS[layers])
        setup = Setup(connector, held, room, running * longest, longest, running, True, layers)
        self.engine = Engine(setup)
        self._running = running
        for number in range(running):
            self.engine.add(f"r{number}", tokens(number, context), longest)
        requests = self.engine.scheduler.requests
        while any(request.num_output_tokens < 1 for request in requests.values()):
            self.engine.step()
        # Each is to fill its chunks in steps of its own.
        half = CHUNK_TOKENS // 2
        more = {
            f"r{number}": (number % half - requests[f"r{number}"].num_tokens) % CHUNK_TOKENS
            for number in range(running)
        }
        self.engine.step(more)
        for _ in range(CHUNK_TOKENS):
            self.engine.step()
        self.engine.timed.take()

    def repeat(self) -> Figures:
        """Decodes as many tokens as two chunks have."""
        plain: list[int] = []
        every: list[int] = []
        spents: list[Spent] = []
        saved = self.engine.worker.saved
        for _ in range(_DECODED):
            step = self.engine.step()
            requests = self.engine.scheduler.requests
            if set(step.num_scheduled_tokens) != set(requests) or len(requests) != self._running:
                raise RuntimeError("not every request got a token in a step of decoding")
            filled = sum(r.num_computed_tokens % CHUNK_TOKENS == 0 for r in requests.values())
            spent = self.engine.timed.take()
            spents.append(spent)
            every.append(spent.cpu)
            if not filled:
                plain.append(spent.cpu)
        if self.engine.worker.saved == saved:
            raise RuntimeError("nothing was saved of what was decoded")
        unit = 1000 * self._running
        return {
            "step without a new chunk": float(np.median(plain)) / unit,
            "mean of all steps": float(np.mean(every)) / unit,
            "p99 of steps": float(np.percentile(every, 99)) / unit,
            "worst step": max(every) / unit,
            **_of_mean(spents, unit * len(spents)),
        }


class Queue:
    """``queued`` requests of ``context`` tokens wait, and vLLM asks for each in every pass: the
    first half of each is held, and what comes next is being stored. It is not in vLLM's own prefix
    cache, which is off here.

    Figures are in microseconds per queued request and pass, unless they say otherwise."""

    def __init__(
        self,
        connector: str,
        held: int,
        context: int,
        queued: int,
        repeats: int,
        layers: str = "full",
    ) -> None:
        self._documents = min(_DOCUMENTS, queued)
        self._half = context // 2 // CHUNK_TOKENS * CHUNK_TOKENS
        longest = context + CHUNK_TOKENS
        self._context, self._queued, self._repeats = context, queued, 0
        at_once = 2 * self._documents
        # What is queued is computed for a few steps, and stored.
        room = at_once * longest // CHUNK_TOKENS * (repeats + 1)
        room *= len(KINDS[layers])
        tokens_at_once = at_once * longest
        setup = Setup(connector, held, room, tokens_at_once, longest, at_once, False, layers)
        self.engine = Engine(setup)
        for number in range(self._documents):
            self.engine.add(f"document-{number}", self._document(number), 1)
        self._finish()

    def repeat(self) -> Figures:
        """Queues new requests, of the same documents with other ends."""
        engine, round_ = self.engine, self._repeats
        self._repeats += 1
        engine.withhold = True
        prompts = []
        for number in range(self._documents):
            seed = 10_000 * (round_ + 1) + number
            prompts.append(self._document(number) + tokens(seed, _ADDED))
            engine.add(f"longer-{round_}-{number}", list(prompts[-1]), 1)
        while any(not request.is_finished() for request in engine.scheduler.requests.values()):
            engine.step()
        engine.timed.take()
        for number in range(self._queued):
            end = tokens(10**6 * (round_ + 1) + number, self._context - self._half - _ADDED)
            engine.add(f"queued-{round_}-{number}", prompts[number % self._documents] + end, 1)
        first = self._pass()
        later = [self._pass() for _ in range(_PASSES)]
        quiet = self._quiet()
        later += [self._pass() for _ in range(_PASSES)]
        loaded = self._let_go()
        if not loaded:
            raise RuntimeError("nothing was loaded of what had been stored")
        unit, passes = 1000 * self._queued, [first, *later]
        return {
            "first pass": first.cpu / unit,
            "later pass": float(np.median([spent.cpu for spent in later[_PASSES:]])) / unit,
            "worst pass, ms": max(spent.cpu for spent in passes) / 1e6,
            "worst pass by the clock, ms": max(spent.wall for spent in passes) / 1e6,
            "other threads, in all": (sum(s.others for s in passes) + quiet.others) / unit,
            "of the first, garbage collection": first.gc / unit,
            COLLECTIONS: float(sum(sum(spent.collections) for spent in passes)),
        }

    def _document(self, number: int) -> list[int]:
        return tokens(number, self._half)

    def _pass(self) -> Spent:
        step = self.engine.step()
        if step.num_scheduled_tokens:
            raise RuntimeError(f"{len(step.num_scheduled_tokens)} requests did not wait")
        return self.engine.timed.take()

    def _quiet(self) -> Spent:
        """Waits until no other thread of this process has anything to do."""
        timed, deadline = self.engine.timed, time.monotonic() + _PATIENCE_S
        spent, looks = timed.take(), 0
        while time.monotonic() < deadline:
            time.sleep(_QUIET_S)
            lately = timed.take().others
            spent.others += lately
            # On a busy machine one that has work may not get to it for a moment.
            looks = looks + 1 if lately < _QUIET_S * 1e9 / 50 else 0
            if looks == _QUIET_LOOKS:
                return spent
        raise RuntimeError(f"other threads were still busy after {_PATIENCE_S:.0f} s")

    def _let_go(self) -> int:
        """Ends the wait, and the requests. Returns the chunks that were loaded."""
        from vllm.v1.request import RequestStatus

        engine, before = self.engine, self.engine.worker.loaded
        engine.withhold = False
        for _ in range(_TRIES):
            engine.step()
            if engine.worker.loaded > before:
                break
        engine.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        self._finish()
        engine.timed.take()
        return engine.worker.loaded - before

    def _finish(self) -> None:
        scheduler = self.engine.scheduler
        while scheduler.requests or scheduler.has_requests():
            self.engine.step()


SCENARIOS: dict[str, type[Decode] | type[Queue]] = {"decode": Decode, "queue": Queue}
_open: dict[str, Decode | Queue] = {}


def begin(kind: str, connector: str, *arguments: Any) -> None:
    """Sets a scenario up, in the process that calls: one for each connector."""
    _open[connector] = SCENARIOS[kind](connector, *arguments)


def repeat(connector: str) -> Figures:
    """Measures in the connector's scenario."""
    return _open[connector].repeat()


def end(connector: str) -> tuple[int, int]:
    """Ends the connector's scenario. Returns the chunks that were saved and loaded in it."""
    scenario = _open.pop(connector)
    worker = scenario.engine.worker
    scenario.engine.close()
    return worker.saved, worker.loaded


def _of_mean(spents: list[Spent], unit: float) -> Figures:
    return {
        "mean by the clock": sum(spent.wall for spent in spents) / unit,
        "of the mean, garbage collection": sum(spent.gc for spent in spents) / unit,
        COLLECTIONS: float(sum(sum(spent.collections) for spent in spents)),
        "other threads": sum(spent.others for spent in spents) / unit,
        "scheduler, connector included": sum(spent.whole for spent in spents) / unit,
    }

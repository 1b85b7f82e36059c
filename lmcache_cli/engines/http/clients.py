"""Clients that send requests, in an open or a closed loop, and the check that they can keep up: a
client that did not has measured itself, not the server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import aiohttp
import numpy as np

from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.http.completions import Completion
from lmcache_cli.errors import EXIT_FAILED, UserError
from reports.sample import Sample
from workloads.request import Request

SHARE = 0.1
"""The share of the median TTFT that the client may delay requests by: so little does not matter."""
FLOOR_S = 0.005
"""Seconds by which any busy machine may delay a thread."""
_PROBE_S = 0.01
_FEWEST = 20


class SaturatedError(UserError):
    """The client was the bottleneck: the run is void."""

    exit_code = EXIT_FAILED


class LoopLag:
    """The delays of the event loop in running what is due, measured by a task that sleeps on it."""

    def __init__(self) -> None:
        self.late_s: list[float] = []

    async def watch(self) -> None:
        """Measures how late the event loop is, again and again, until it is cancelled."""
        while True:
            due = time.perf_counter() + _PROBE_S
            await asyncio.sleep(_PROBE_S)
            self.late_s.append(max(0.0, time.perf_counter() - due))


def refuse_saturated(samples: Sequence[Sample], late_s: Sequence[float], open_loop: bool) -> None:
    """Raises :class:`SaturatedError` if sends in an open loop, or the event loop, were late by more
    than a tenth of the median TTFT (and 5 ms) in one case of ten."""
    done = [s for s in samples if s.completed]
    if not done:
        return
    allowed = max(FLOOR_S, SHARE * float(np.median([s.first_token_s - s.sent_s for s in done])))
    sends = [s.sent_s - s.scheduled_s for s in done] if open_loop else []
    for what, values, fewest in (
        ("requests were sent", sends, 1),
        ("its event loop ran", late_s, _FEWEST),
    ):
        late = float(np.quantile(values, 0.9)) if len(values) >= fewest else 0.0
        if late > allowed:
            raise SaturatedError(
                f"the client could not keep up: {what} {late * 1000:.1f} ms late (p90), where"
                f" {allowed * 1000:.1f} ms would do; lower --rate or --concurrency, or run"
                " lmcache on a machine with an idle core"
            )


_T = TypeVar("_T")
Send = Callable[[int], Awaitable[Completion]]

_CONNECT_S = 10.0
# Below what servers keep an idle connection for (uvicorn: 5 s): who sends on one that the server
# is just closing gets no answer.
_KEEP_ALIVE_S = 3.0


class Clients:
    """A connection pool on an event loop in a thread. ``silence_s`` is the longest wait for the
    next byte of an answer; ``proxies``: whether the environment's proxies are used."""

    def __init__(self, headers: Mapping[str, str], silence_s: float, proxies: bool) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.http = self.run(self._open(headers, silence_s, proxies))

    def run(self, work: Coroutine[object, object, _T]) -> _T:
        """Runs a coroutine on the clients' event loop; blocks until it is done and returns its
        result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def serve(
        self, requests: Sequence[Request], load: Load, send: Send, lag: LoopLag
    ) -> Iterator[tuple[float, Completion]]:
        """Sends request i by ``send(i)`` when it is due. Yields (when it was due, answer) in the
        order of the requests, each as soon as those before it are answered.

        Closed loop: each client sends the next request when its last is answered. Open loop: each
        request is sent at its arrival time, whatever is under way. Leaving the iterator early
        cancels what is under way.
        """
        slots: list[Future[tuple[float, Completion]]] = [Future() for _ in requests]
        driver = asyncio.run_coroutine_threadsafe(
            self._drive(requests, load, send, lag, slots), self._loop
        )
        try:
            for slot in slots:
                yield slot.result()
        finally:
            driver.cancel()

    def close(self) -> None:
        """Closes the connections and ends the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(
        self, headers: Mapping[str, str], silence_s: float, proxies: bool
    ) -> aiohttp.ClientSession:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=silence_s)
        pool = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S)
        return aiohttp.ClientSession(
            headers=headers, timeout=limits, connector=pool, trust_env=proxies
        )

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.http.close()

    async def _drive(
        self,
        requests: Sequence[Request],
        load: Load,
        send: Send,
        lag: LoopLag,
        slots: Sequence[Future[tuple[float, Completion]]],
    ) -> None:
        start = time.perf_counter()
        queue = iter(range(len(requests)))

        async def one(i: int, due: float) -> None:
            slots[i].set_result((due, await send(i)))

        async def client() -> None:
            due = start
            for i in queue:
                await one(i, due)
                due = time.perf_counter()

        async def arrival(i: int) -> None:
            due = start + requests[i].arrival_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await one(i, due)

        probe = asyncio.ensure_future(lag.watch())
        try:
            async with asyncio.TaskGroup() as group:
                if load.concurrency is None:
                    for i in range(len(requests)):
                        group.create_task(arrival(i))
                else:
                    for _ in range(min(load.concurrency, len(requests))):
                        group.create_task(client())
        except BaseException as error:
            # Whoever waits for an answer must not wait for ever.
            for slot in slots:
                if not slot.done():
                    slot.set_exception(error)
            raise
        finally:
            probe.cancel()
            with suppress(asyncio.CancelledError):
                await probe

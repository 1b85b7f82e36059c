"""Clients that send at the same time: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import aiohttp

from lmcache_cli.engines.completions import Answer
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.saturation import LoopLag
from workloads.request import Request

T = TypeVar("T")
Send = Callable[[int], Awaitable[Answer]]

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

    def run(self, work: Coroutine[object, object, T]) -> T:
        """Runs it on the loop; blocks until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def serve(
        self, requests: Sequence[Request], load: Load, send: Send, lag: LoopLag
    ) -> Iterator[tuple[float, Answer]]:
        """Sends request i by ``send(i)`` when it is due. Yields (when it was due, answer) in the
        order of the requests, each as soon as those before it are answered.

        Closed loop: each client sends the next request when its last is answered. Open loop: each
        request is sent at its arrival time, whatever is under way. Leaving the iterator early
        cancels what is under way.
        """
        slots: list[Future[tuple[float, Answer]]] = [Future() for _ in requests]
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
        slots: Sequence[Future[tuple[float, Answer]]],
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

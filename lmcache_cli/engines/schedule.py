"""When requests are due at a server that takes them one at a time, first come first served."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lmcache_cli.engines.engine import Load
from reports.sample import Sample
from workloads.request import Request


def first_come_first_served(
    requests: Sequence[Request],
    load: Load,
    serve: Callable[[Request, float, float], Sample],
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[Sample]:
    """Yields ``serve(request, scheduled_s, sent_s)`` for each request, in order.

    Closed loop: each of ``concurrency`` clients sends its next request when its last is answered,
    so request i is due when request i - concurrency finished. Open loop: due at its arrival time.
    The server is this very process, so a due request is sent at once; it may still have to queue.
    """
    start = now()
    finished: list[float] = []
    for i, request in enumerate(requests):
        if load.concurrency is None:
            due = start + request.arrival_s
            if due > now():
                sleep(due - now())
        else:
            due = start if i < load.concurrency else finished[i - load.concurrency]
        sample = serve(request, due, due)
        finished.append(sample.finished_s)
        yield sample

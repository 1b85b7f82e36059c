"""Whether the client kept up. A client that did not has measured itself, not the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from lmcache_cli.errors import EXIT_FAILED, UserError
from reports.sample import Sample

SHARE = 0.1
"""Of the median TTFT: the delay by the client that is still no matter."""
FLOOR_S = 0.005
"""What any busy machine may delay a thread."""
_PROBE_S = 0.01
_FEWEST = 20


class SaturatedError(UserError):
    """The client was the bottleneck: the run is void."""

    exit_code = EXIT_FAILED


class LoopLag:
    """How late the event loop runs what is due: measured by a task that sleeps on it."""

    def __init__(self) -> None:
        self.late_s: list[float] = []

    async def watch(self) -> None:
        """Probes until it is cancelled."""
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

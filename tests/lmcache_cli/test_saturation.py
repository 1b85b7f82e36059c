"""A client that did not keep up has measured itself, and says so."""

from __future__ import annotations

import time
from typing import Any

import pytest

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.http.clients import SaturatedError, refuse_saturated
from lmcache_cli.engines.http.engine import OpenAIEngine
from lmcache_cli.engines.http.settings import ServerSettings
from reports.sample import Sample
from tests.lmcache_cli.odd_servers import Handler, odd_server, requests, well


def test_a_client_that_is_late_voids_the_run() -> None:
    """Something else holds the event loop for a second, amid an open loop."""

    def behave(handler: Handler, body: dict[str, Any], number: int) -> None:
        if number == 5:
            engine.endpoint.clients.run(block(1.0))
        well(handler, body, number)

    with odd_server(behave) as server:
        engine = OpenAIEngine(None, ServerSettings(server.url))
        session = engine.open(CacheSpec(64, mode="server", foreign=True), 64)
        samples: list[Sample] = []
        served = session.serve(requests(40, every_s=0.01), Load(None))
        with pytest.raises(SaturatedError, match="could not keep up"):
            samples.extend(iter(lambda: next(served), None))
        engine.close()
    assert len(samples) == 40, "what was measured is kept"


async def block(seconds: float) -> None:
    """What no coroutine should do."""
    time.sleep(seconds)


def sample(late_s: float, ttft_s: float) -> Sample:
    return Sample(
        request_id="r",
        session="s",
        prompt_tokens=1,
        output_tokens=1,
        scheduled_s=0.0,
        sent_s=late_s,
        first_token_s=late_s + ttft_s,
        finished_s=late_s + ttft_s,
    )


def test_what_late_is() -> None:
    refuse_saturated([], [1.0] * 99, open_loop=True)
    refuse_saturated([sample(0.09, 1.0)] * 9, [], open_loop=True)
    refuse_saturated([sample(9.0, 1.0)] * 9, [0.09] * 99, open_loop=False)
    refuse_saturated([sample(0.0, 1.0)] * 9, [9.0], open_loop=False)
    with pytest.raises(SaturatedError, match="requests were sent"):
        refuse_saturated([sample(0.2, 1.0)] * 9, [], open_loop=True)
    with pytest.raises(SaturatedError, match="event loop"):
        refuse_saturated([sample(0.0, 0.01)] * 9, [0.02] * 99, open_loop=False)

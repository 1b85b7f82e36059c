"""A scenario's requests, in an engine's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmcache_cli.bench.cells import Scenario
from lmcache_cli.engines.engine import Engine
from lmcache_cli.errors import UserError
from workloads import Corpus, CorpusError, Request, generate, replay


def make_requests(
    scenario: Scenario,
    corpus: Corpus,
    encode: Callable[[str], Sequence[int]],
    bos: int | None,
    warn: Callable[[str], None],
) -> list[Request]:
    """Generated, or replayed from a trace, in the order of sending. Raises ``UserError``."""
    try:
        if scenario.replay is not None:
            return replay(scenario.replay, encode, bos, warn)
        return generate(scenario.workload, scenario.settings, corpus, encode, bos)
    except (CorpusError, ValueError) as error:
        raise UserError(f"{scenario.workload}: {error}") from error


def refuse_too_long(engine: Engine, requests: Sequence[Request]) -> None:
    """Raises ``UserError`` for a request beyond the model's context."""
    longest = max(requests, key=lambda r: len(r.token_ids) + r.max_tokens)
    need = len(longest.token_ids) + longest.max_tokens
    if need > engine.max_context:
        raise UserError(
            f"request {longest.id} needs {need} tokens (prompt and output), but {engine.model}'s"
            f" context is {engine.max_context}; lower --context-tokens or --scale, or use"
            " another --model"
        )

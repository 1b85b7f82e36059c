"""A scenario's requests, in an engine's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lmcache_cli.bench.cells import Scenario
from lmcache_cli.engines.engine import Engine
from lmcache_cli.errors import UserError
from workloads import Corpus, CorpusError, Request, answering, generate, replay

Encode = Callable[[str], Sequence[int]]
Say = Callable[[str], None]


def make_requests(
    scenario: Scenario, corpus: Corpus, encode: Encode, bos: int | None, warn: Say
) -> list[Request]:
    """Generated, or replayed from a trace, in the order of sending. Raises ``UserError``."""
    try:
        if scenario.replay is not None:
            return replay(scenario.replay, encode, bos, warn)
        return generate(scenario.workload, scenario.settings, corpus, encode, bos)
    except (CorpusError, ValueError) as error:
        raise UserError(f"{scenario.workload}: {error}") from error


def engine_requests(
    scenario: Scenario, corpus: Corpus, engine: Engine, warn: Say, note: Say
) -> list[Request]:
    """The same for ``engine``, or a data set's questions, cut to its context. Raises ``UserError``,
    too if one does not fit the model's context."""
    if scenario.examples:
        requests = _asked(scenario, engine, note)
    else:
        requests = make_requests(scenario, corpus, engine.encode, engine.bos, warn)
    refuse_too_long(engine, requests)
    return requests


def _asked(scenario: Scenario, engine: Engine, note: Say) -> list[Request]:
    settings = scenario.settings
    room = engine.max_context - settings.output_tokens
    settings = replace(settings, context_tokens=max(2, min(settings.context_tokens, room)))
    try:
        requests, cut = answering(
            scenario.examples, settings, engine.encode, engine.bos, engine.frame
        )
    except (CorpusError, ValueError) as error:
        raise UserError(f"{scenario.workload}: {error}") from error
    note(
        f"prompts of at most {settings.context_tokens} tokens have {cut.kept} of {cut.total}"
        f" passages; in {cut.answerable} of {cut.prompts} of them an answer can be read"
    )
    return requests


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

"""Makes requests from a workload's name and knobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from workloads.documents import agent, chat, long_context, rag, unrelated
from workloads.draw import Draw
from workloads.request import Part, Prompt, Request
from workloads.settings import Settings, arrival_times
from workloads.text import Corpus
from workloads.tokens import Encode, TokenReader

Workload: TypeAlias = Callable[[Settings, TokenReader, Draw], list[Prompt]]

WORKLOADS: dict[str, Workload] = {
    "long-context": long_context,
    "rag": rag,
    "chat": chat,
    "agent": agent,
    "random": unrelated,
}
WORKLOAD_USES: dict[str, tuple[str, ...]] = {
    "long-context": ("context_tokens", "documents", "questions", "question_tokens"),
    "rag": (
        "passages",
        "passage_tokens",
        "corpus_passages",
        "zipf",
        "order",
        "system_tokens",
        "question_tokens",
    ),
    "chat": ("sessions", "rounds", "system_tokens", "question_tokens"),
    "agent": ("sessions", "rounds", "system_tokens", "question_tokens"),
    "random": ("context_tokens", "documents", "questions"),
}
"""The knobs of :class:`Settings` that are not every workload's, by workload."""


def generate(
    name: str, settings: Settings, corpus: Corpus, encode: Encode, bos: int | None = None
) -> list[Request]:
    """Makes the requests of a workload in the order of sending.

    ``encode`` turns text into token ids without special tokens; ``bos``, if given, is put first in
    each prompt. The same arguments give the same requests. Raises ``ValueError`` for an unknown
    name and ``CorpusError`` if the corpus has too little text.
    """
    if name not in WORKLOADS:
        raise ValueError(f"workload: {name!r} is not known; use one of {', '.join(WORKLOADS)}")
    reader = TokenReader(corpus, encode, bos)
    prompts = WORKLOADS[name](settings, reader, Draw(name, settings.seed))
    times = arrival_times(len(prompts), settings.rate, Draw("arrivals", name, settings.seed))
    return [
        prompt.request(time, settings.output_tokens)
        for prompt, time in zip(prompts, times, strict=True)
    ]


def seen_before(requests: Sequence[Request]) -> float:
    """Returns the share of all prompt tokens that stand in parts (documents, passages, ...) which
    an earlier request had too, wherever they stood in it, 0..1."""
    seen: set[bytes] = set()
    again = total = 0
    for request in requests:
        parts = {request.token_ids[s.start : s.end].tobytes() for s in request.segments}
        again += sum(len(part) // request.token_ids.itemsize for part in parts & seen)
        total += len(request.token_ids)
        seen |= parts
    return again / total if total else 0.0


def warming(requests: Sequence[Request]) -> list[Request]:
    """Makes requests that show each part between the first and last segment of ``requests`` once.

    Each begins with the first request's first segment and ends with its last one, and has as many
    parts between as it has. Parts come in reverse order of their first use, so that hardly one
    stands where, and after what, it stands in ``requests``. One token is generated. Requests of
    fewer than three segments give nothing.
    """
    parts: dict[bytes, Part] = {}
    for request in requests:
        for segment in request.segments[1:-1]:
            ids = request.token_ids[segment.start : segment.end]
            parts.setdefault(ids.tobytes(), Part(segment.kind, ids))
    if not parts:
        return []
    model = next(request for request in requests if len(request.segments) > 2)
    first, *between, last = [Part(s.kind, model.token_ids[s.start : s.end]) for s in model.segments]
    waiting = list(reversed(parts.values()))
    made = []
    for i in range(0, len(waiting), len(between)):
        name = f"warm{i // len(between)}"
        parts_of = (first, *waiting[i : i + len(between)], last)
        made.append(Prompt(name, name, parts_of).request(0.0, 1))
    return made

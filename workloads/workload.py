"""From a workload's name and knobs to requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from workloads.documents import long_context, rag, unrelated
from workloads.draw import Draw
from workloads.prompt import Prompt
from workloads.request import Request
from workloads.sessions import agent, chat
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
        "system_tokens",
        "question_tokens",
    ),
    "chat": ("sessions", "rounds", "system_tokens", "question_tokens"),
    "agent": ("sessions", "rounds", "system_tokens", "question_tokens"),
    "random": ("context_tokens", "documents", "questions"),
}
"""The knobs of :class:`Settings` that are not every workload's."""


def generate(
    name: str, settings: Settings, corpus: Corpus, encode: Encode, bos: int | None = None
) -> list[Request]:
    """The requests of a workload in the order of sending.

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

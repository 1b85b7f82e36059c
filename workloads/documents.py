"""Workloads of documents: long texts that are asked questions, passages that are retrieved, and
texts that have nothing in common."""

from __future__ import annotations

import math
from heapq import nsmallest

import numpy as np

from workloads.draw import Draw
from workloads.request import Part, Prompt
from workloads.settings import Settings
from workloads.tokens import PASSAGE_GAP, QUOTE_ENDINGS, Quoter, TokenReader, system_prompt


def long_context(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """Asks each of ``documents`` documents of exactly ``context_tokens`` tokens (BOS included)
    ``questions`` questions of ``question_tokens``, interleaved: d0q0 d1q0 ... d0q1 d1q1 ...

    So a document returns only after all others: a tier too small for all of them gets no hit under
    LRU. With ``requests``, the round goes on until so many are made.
    """
    total = settings.requests or settings.documents * settings.questions
    quoter = Quoter(QUOTE_ENDINGS["about a text"], reader, draw)
    documents = [
        Part("document", reader.read(settings.context_tokens, first=True))
        for _ in range(min(total, settings.documents))
    ]
    prompts = []
    for i in range(total):
        number, d = divmod(i, settings.documents)
        opening = f"\n\nQuestion {number + 1}: “…"
        # A BOS token is nothing to quote.
        question = quoter.write(opening, documents[d].ids[1:], settings.question_tokens)
        parts = (documents[d], Part("question", question))
        prompts.append(Prompt(f"d{d}q{number}", f"d{d}", parts))
    return prompts


def unrelated(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """Makes prompts of exactly ``context_tokens`` tokens (BOS included) that have no beginning and
    no text in common: what reuse costs where it can't help. There are as many as ``long_context``
    makes."""
    total = settings.requests or settings.documents * settings.questions
    # Texts of a user may begin alike; with a number of its own in front, none does.
    first = draw.below(10_000)
    prompts = []
    for i in range(total):
        label = f"{first + i}. "
        text = reader.read(settings.context_tokens, label, first=True)
        prompts.append(Prompt(f"r{i}", f"r{i}", (Part("document", text),)))
    return prompts


NATURAL_REQUESTS = 64


def rag(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """Makes ``requests`` (or 64) prompts: one shared system prompt, ``passages`` different passages
    of exactly ``passage_tokens`` tokens out of ``corpus_passages``, and a question about them.

    The passage of rank r (0 is the most popular) is drawn with a weight of 1 / (r + 1) ** zipf.
    With the ``order`` "stable" a prompt has the most popular of its passages first, so that prompts
    begin alike more often.
    """
    system = system_prompt("answers from passages", settings.system_tokens, reader)
    quoter = Quoter(QUOTE_ENDINGS["about a text"], reader, draw)
    pool = [
        Part("passage", reader.read(settings.passage_tokens, PASSAGE_GAP))
        for _ in range(settings.corpus_passages)
    ]
    prompts = []
    for i in range(settings.requests or NATURAL_REQUESTS):
        ranks = popular(settings.corpus_passages, settings.passages, settings.zipf, draw)
        if settings.order == "stable":
            ranks.sort()
        drawn = tuple(pool[rank] for rank in ranks)
        about = np.concatenate([part.ids for part in drawn])
        opening = f"\n\nQuestion {i + 1}: “…"
        question = quoter.write(opening, about, settings.question_tokens)
        prompts.append(Prompt(f"r{i}", f"r{i}", (system, *drawn, Part("question", question))))
    return prompts


def popular(total: int, count: int, zipf: float, draw: Draw) -> list[int]:
    """Draws ``count`` different ranks in [0, total), as if drawn one after the other without
    putting back, with weights 1 / (rank + 1) ** zipf.

    Each rank waits an exponential time of that rate; the first to come are drawn. In logarithms, as
    steep weights leave the range of a float.
    """
    waits = [math.log(draw.exponential()) + zipf * math.log(rank + 1) for rank in range(total)]
    return nsmallest(count, range(total), key=waits.__getitem__)

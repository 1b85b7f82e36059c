"""Retrieval: a system prompt, passages by popularity, a question."""

from __future__ import annotations

import math
from heapq import nsmallest

import numpy as np

from workloads.draw import Draw
from workloads.prompt import Part, Prompt
from workloads.question import ABOUT_A_TEXT, Quoter
from workloads.settings import Settings
from workloads.system import ANSWERS_FROM_PASSAGES, system_prompt
from workloads.tokens import GAP, TokenReader

NATURAL_REQUESTS = 16


def rag(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """``requests`` (or 16) prompts: one shared system prompt, ``passages`` different passages of
    exactly ``passage_tokens`` tokens out of ``corpus_passages``, and a question about them.

    The passage of rank r (0 is the most popular) is drawn with a weight of 1 / (r + 1) ** zipf.
    """
    system = system_prompt(ANSWERS_FROM_PASSAGES, settings.system_tokens, reader)
    quoter = Quoter(ABOUT_A_TEXT, reader, draw)
    pool = [
        Part("passage", reader.read(settings.passage_tokens, GAP))
        for _ in range(settings.corpus_passages)
    ]
    prompts = []
    for i in range(settings.requests or NATURAL_REQUESTS):
        ranks = popular(settings.corpus_passages, settings.passages, settings.zipf, draw)
        drawn = tuple(pool[rank] for rank in ranks)
        about = np.concatenate([part.ids for part in drawn])
        opening = f"\n\nQuestion {i + 1}: “…"
        question = quoter.write(opening, about, settings.question_tokens)
        prompts.append(Prompt(f"r{i}", f"r{i}", (system, *drawn, Part("question", question))))
    return prompts


def popular(total: int, count: int, zipf: float, draw: Draw) -> list[int]:
    """``count`` different ranks in [0, total), as if drawn one after the other without putting
    back, with weights 1 / (rank + 1) ** zipf.

    Each rank waits an exponential time of that rate; the first to come are drawn. In logarithms,
    as steep weights leave the range of a float.
    """
    waits = [math.log(draw.exponential()) + zipf * math.log(rank + 1) for rank in range(total)]
    return nsmallest(count, range(total), key=waits.__getitem__)

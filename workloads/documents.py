"""Workloads about one long text per prompt: documents that are asked questions, and texts that
have nothing in common."""

from __future__ import annotations

from workloads.draw import Draw
from workloads.prompt import Part, Prompt
from workloads.question import ABOUT_A_TEXT, Quoter
from workloads.settings import Settings
from workloads.tokens import TokenReader


def long_context(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """``documents`` of exactly ``context_tokens`` tokens (BOS included), each asked ``questions``
    questions of ``question_tokens``, interleaved: d0q0 d1q0 ... d0q1 d1q1 ...

    So a document returns only after all others: a tier too small for all of them gets no hit under
    LRU. With ``requests``, the round goes on until so many are made.
    """
    total = settings.requests or settings.documents * settings.questions
    quoter = Quoter(ABOUT_A_TEXT, reader, draw)
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
    """Prompts of exactly ``context_tokens`` tokens (BOS included) that have no beginning and no
    text in common: what reuse costs where it can't help. As many as ``long_context`` makes."""
    total = settings.requests or settings.documents * settings.questions
    # Texts of a user may begin alike; with a number of its own in front, none does.
    first = draw.below(10_000)
    prompts = []
    for i in range(total):
        label = f"{first + i}. "
        text = reader.read(settings.context_tokens, label, first=True)
        prompts.append(Prompt(f"r{i}", f"r{i}", (Part("document", text),)))
    return prompts

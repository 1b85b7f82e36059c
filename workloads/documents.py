"""The workloads. Of documents: long texts that are asked questions, passages that are retrieved,
texts that have nothing in common; and of sessions, whose prompts grow: conversations, tool loops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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


NATURAL_REQUESTS = 24


def rag(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """Makes ``requests`` (or 24) prompts: one shared system prompt, ``passages`` different passages
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


def chat(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """Makes ``sessions`` chats of ``rounds`` rounds, interleaved: s0r0 s1r0 ... s0r1 s1r1 ...

    Round r's prompt is the shared system prompt, all earlier turns of the user (``question_tokens``
    each) with their scripted replies (``reply_tokens`` each), and a new turn. With ``requests``
    above sessions x rounds, new sessions begin when the old ones have ended.
    """
    system = system_prompt("converses", settings.system_tokens, reader)
    quoter = Quoter(
        [f"{ending}\n\nAssistant:" for ending in QUOTE_ENDINGS["in a chat"]], reader, draw
    )
    histories: dict[int, tuple[Part, ...]] = {}
    prompts = []
    for session, number in _interleaved(settings):
        history = histories.pop(session, ())
        if number:
            said, about = "You said “…", history[-1].ids
        else:
            said, about = "I have read “…", reader.read(settings.question_tokens)
        turn = quoter.write(f"\n\nUser: {said}", about, settings.question_tokens)
        parts = (system, *history, Part("question", turn))
        prompts.append(Prompt(f"s{session}r{number}", f"s{session}", parts))
        if number + 1 < settings.rounds:
            reply = reader.read(settings.reply_tokens, " ")
            histories[session] = (*history, Part("history", turn), Part("history", reply))
    return prompts


def agent(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """Makes ``sessions`` tool loops of ``rounds`` steps, interleaved: s0r0 s1r0 ... s0r1 s1r1 ...

    Step s's prompt is the shared descriptions of the tools (``system_tokens``), the session's task
    (``question_tokens``), and s times a scripted call (``reply_tokens``) with its result
    (``result_tokens``). Results are what makes it grow.
    """
    system = system_prompt("uses tools", settings.system_tokens, reader)
    tasks = Quoter(QUOTE_ENDINGS["task"], reader, draw)
    calls = Quoter(QUOTE_ENDINGS["call"], reader, draw)
    loops: dict[int, tuple[Part, ...]] = {}
    prompts = []
    for session, number in _interleaved(settings):
        if number == 0:
            about = reader.read(settings.question_tokens)
            task = tasks.write("\n\nTask: A note says “…", about, settings.question_tokens)
            loop: tuple[Part, ...] = (Part("question", task),)
        else:
            before = loops.pop(session)
            call = calls.write("\n\nAgent: It says “…", before[-1].ids, settings.reply_tokens)
            result = reader.read(settings.result_tokens, "\n\nResult: ")
            loop = (*before, Part("history", call), Part("tool", result))
        prompts.append(Prompt(f"s{session}r{number}", f"s{session}", (system, *loop)))
        if number + 1 < settings.rounds:
            loops[session] = loop
    return prompts


def _interleaved(settings: Settings) -> Iterator[tuple[int, int]]:
    """Yields (session, number of its request), round by round, and wave by wave of sessions."""
    wave = settings.sessions * settings.rounds
    for i in range(settings.requests or wave):
        waves, rest = divmod(i, wave)
        number, place = divmod(rest, settings.sessions)
        yield waves * settings.sessions + place, number

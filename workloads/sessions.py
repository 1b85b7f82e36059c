"""Workloads whose prompts grow from request to request: conversations and tool loops."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.draw import Draw
from workloads.request import Part, Prompt
from workloads.settings import Settings
from workloads.tokens import QUOTE_ENDINGS, Quoter, TokenReader, system_prompt


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

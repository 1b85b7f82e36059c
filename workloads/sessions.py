"""Workloads whose prompts grow from request to request: conversations and tool loops."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.draw import Draw
from workloads.prompt import CONVERSES, USES_TOOLS, Part, Prompt, system_prompt
from workloads.settings import Settings
from workloads.tokens import IN_A_CHAT, Quoter, TokenReader

_CALLS = (
    '…”, which I shall follow up.\nCall: search_archive(query="founder", limit=3)',
    '…”, so I look for letters.\nCall: search_archive(query="letters to the council")',
    "…”. I need the whole page.\nCall: open_document(id=4127, page=2)",
    "…”. The next page may say more.\nCall: open_document(id=863, page=5)",
    '…”. Who lived there then?\nCall: list_people(place="harbour", from_year=1840, to_year=1865)',
    '…”. That sum means little today.\nCall: convert_units(value=412, source="crown", '
    'target="euro")',
    '…”. I write that down.\nCall: take_note(text="two versions of the date, check the register")',
    '…”. Only the accounts can tell.\nCall: search_archive(query="accounts", limit=10)',
)
_TASKS = (
    "…”. Find out who was behind it and why.",
    "…”. Check whether this is true and list the sources.",
    "…”. Work out what it would cost today.",
    "…”. Write a short account of how it came about.",
    "…”. Find the earliest mention of it.",
)


def chat(settings: Settings, reader: TokenReader, draw: Draw) -> list[Prompt]:
    """Makes ``sessions`` chats of ``rounds`` rounds, interleaved: s0r0 s1r0 ... s0r1 s1r1 ...

    Round r's prompt is the shared system prompt, all earlier turns of the user (``question_tokens``
    each) with their scripted replies (``reply_tokens`` each), and a new turn. With ``requests``
    above sessions x rounds, new sessions begin when the old ones have ended.
    """
    system = system_prompt(CONVERSES, settings.system_tokens, reader)
    quoter = Quoter([f"{ending}\n\nAssistant:" for ending in IN_A_CHAT], reader, draw)
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
    system = system_prompt(USES_TOOLS, settings.system_tokens, reader)
    tasks = Quoter(_TASKS, reader, draw)
    calls = Quoter(_CALLS, reader, draw)
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

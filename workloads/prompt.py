"""A prompt in the making: labelled parts, which prompts may share, and system prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workloads.request import Request, Segment, TokenIds
from workloads.tokens import PASSAGE_GAP, TokenReader

ANSWERS_FROM_PASSAGES = """\
You answer questions from the passages below. Use only what they say. If they do not contain the \
answer, reply that you could not find it, and do not guess. Name the people, places and dates on \
which the answer rests. Where two passages disagree, say so and give both versions. Keep to the \
language of the question, write whole sentences, and leave out greetings, apologies and remarks \
about yourself. An answer of one or two sentences is usually enough; a list is welcome when the \
question asks for several things. Numbers are given with their units. Spell names exactly as the \
passages spell them. Questions about persons who are alive are answered with particular care."""


CONVERSES = """\
You are a friendly and careful assistant who knows a great deal about local history, trade and \
technology. Answer in plain English. Say what you know and how well you know it, and ask back \
when a question can be understood in two ways. Refer to earlier parts of the conversation where \
that helps. Prefer short paragraphs to long ones and examples to definitions. Do not repeat the \
question. When the user is mistaken, correct the mistake politely and give the reason. Never \
invent sources. If you are asked for an opinion, give the arguments on both sides first. Amounts \
of money are given in the currency of the time, distances in kilometres and weights in grams."""


USES_TOOLS = """\
You are an agent that looks things up step by step. At each step you may call one of these tools.

search_archive(query: string, limit: integer = 5): finds documents by words in their text. Returns \
the beginning of each document, the best match first.
open_document(id: integer, page: integer = 1): returns one page of a document as text.
list_people(place: string, from_year: integer, to_year: integer): returns the names of the people \
whom the registers of a place mention in these years, with their trades.
convert_units(value: number, source: string, target: string): converts lengths, weights and old \
currencies. Returns a number and the table that was used.
take_note(text: string): keeps a note for later steps. Returns nothing.

Say in one sentence what you are after, then write the call on a line of its own. A result follows \
each call. Use no tool twice with the same arguments. As soon as you know enough, stop calling \
tools and give the answer together with the documents that support it."""


def system_prompt(text: str, count: int, reader: TokenReader) -> Part:
    """Makes a system prompt of exactly ``count`` tokens, BOS included: the text, cut, or followed
    by notes from the corpus where it is too short."""
    return Part("system", reader.read(count, text + PASSAGE_GAP + "Background:\n\n", first=True))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Tokens of one kind (see ``workloads.request.SEGMENT_KINDS``), int32, shape [n]."""

    kind: str
    ids: TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt that a workload makes; when it is sent and how much is generated is set later."""

    id: str
    session: str
    parts: tuple[Part, ...]

    def request(self, arrival_s: float, max_tokens: int, answers: tuple[str, ...] = ()) -> Request:
        """Makes a request of the parts in one read-only array. Empty parts leave no segment."""
        segments = []
        end = 0
        for part in self.parts:
            start, end = end, end + len(part.ids)
            if end > start:
                segments.append(Segment(start, end, part.kind))
        ids = np.concatenate([part.ids for part in self.parts])
        ids.flags.writeable = False
        return Request(self.id, self.session, arrival_s, ids, tuple(segments), max_tokens, answers)

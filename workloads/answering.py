"""Questions of a data set over passages of its own, cut to a context."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from workloads.request import Part, Prompt, Request, TokenIds
from workloads.settings import Settings
from workloads.tokens import Encode

_SYSTEM = (
    "Answer the question from the passages. Give the answer alone, in a few words, without a"
    " sentence around it."
)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Example:
    """A question, the passages to answer it from, and all answers that count as right."""

    question: str
    passages: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """What cutting left of all prompts: passages ``kept`` of ``total``, and the ``answerable``
    prompts, in whose passages one of the answers stands as it is written."""

    prompts: int
    kept: int
    total: int
    answerable: int


def answering(
    examples: Sequence[Example],
    settings: Settings,
    encode: Encode,
    bos: int | None,
    frame: tuple[str, str] = ("", ""),
) -> tuple[list[Request], Cut]:
    """Makes one request per example, the first ``settings.requests`` of them (or all): a system
    prompt, passages, the question. At most ``context_tokens`` tokens each, reached by leaving
    passages out: those that share the least with the question go first (:func:`relevance`; answers
    are not looked at), the others stay in the order of the file. If not even one fits, the most
    relevant is cut. ``frame`` is what a chat model's template puts before and after a user's turn.

    Raises ``ValueError`` if there are no examples, or no space beside the question.
    """
    chosen = list(examples)[: settings.requests]
    if not chosen:
        raise ValueError("the data set has no examples")
    start = [] if bos is None else [bos]
    system = _ids([*start, *encode(frame[0] + _SYSTEM)])
    requests, kept, answerable = [], 0, 0
    for number, example in enumerate(chosen):
        asked = f"\n\nQuestion: {example.question}" + (frame[1] or "\nAnswer:")
        question = _ids(encode(asked))
        room = settings.context_tokens - len(system) - len(question)
        if room < 1:
            raise ValueError(
                f"context_tokens: {settings.context_tokens} leaves no room for a passage beside a"
                f" question of {len(question)} tokens"
            )
        found = _fitting(example, room, lambda text: _ids(encode(f"\n\n{text}")))
        parts = [Part("passage", ids) for _, ids in sorted(found.items())]
        name = f"q{number}"
        prompt = Prompt(name, name, (Part("system", system), *parts, Part("question", question)))
        requests.append(prompt.request(0.0, settings.output_tokens, example.answers))
        kept += len(parts)
        text = " ".join(example.passages[place] for place in found).lower()
        answerable += any(answer.lower() in text for answer in example.answers)
    total = sum(len(example.passages) for example in chosen)
    return requests, Cut(len(chosen), kept, total, answerable)


def relevance(question: str, passages: Sequence[str]) -> list[float]:
    """Scores each passage: the sum over the question's words that it has, each weighted by log(1 +
    passages / passages that have it). Case and word forms as written, lowered."""
    sets = [set(_words(passage)) for passage in passages]
    having = Counter(word for words in sets for word in words)
    wanted = set(_words(question))
    return [
        sum(math.log(1 + len(sets) / having[word]) for word in sorted(wanted & words))
        for words in sets
    ]


def _fitting(example: Example, room: int, encode: Callable[[str], TokenIds]) -> dict[int, TokenIds]:
    """Returns passages by their place, those of the highest relevance that fit."""
    scores = relevance(example.question, example.passages)
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    found: dict[int, TokenIds] = {}
    for place in order:
        ids = encode(example.passages[place])
        if len(ids) <= room:
            found[place] = ids
            room -= len(ids)
    if not found and order:
        found[order[0]] = encode(example.passages[order[0]])[:room]
    return found


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _ids(tokens: Sequence[int]) -> TokenIds:
    return np.array(tokens, dtype=np.int32)

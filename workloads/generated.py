"""A corpus without end and without files: invented English from a seeded generator.

Each passage takes a topic, draws a cast (people, places, years) that its sentences share, and fills
sentence patterns with words and numbers. The facts are made up; the language is ordinary, so that
a tokenizer and a model meet what they meet in real text, and any amount of it repeats little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import count
from typing import TypeAlias

from workloads.draw import Draw


def phrases(name: str) -> dict[str, str]:
    """Reads a file of ``workloads/data``: what stands below each line in brackets, by its text."""
    text = (files("workloads") / "data" / f"{name}.txt").read_text("utf-8")
    parts = re.split(r"^\[([^\]]+)\]\n", text, flags=re.MULTILINE)[1:]
    return {title: body.strip("\n") for title, body in zip(parts[::2], parts[1::2], strict=True)}


@dataclass(frozen=True, slots=True)
class _Number:
    """A number of a pattern, ``{3-28}``; with ``#``, thousands are separated."""

    low: int
    high: int
    thousands: bool


@dataclass(frozen=True, slots=True)
class _Slot:
    """A word of a pattern, ``{name}``: of the cast if it is there, else one of ``words.txt``.
    ``{other_name}`` is never of the cast."""

    name: str


_Pattern: TypeAlias = tuple[str | _Slot | _Number, ...]


def _pattern(text: str) -> _Pattern:
    return tuple(_piece(piece) for piece in re.split(r"(\{[^}]+\})", text) if piece)


def _piece(piece: str) -> str | _Slot | _Number:
    number = re.fullmatch(r"\{(#?)(\d+)-(\d+)\}", piece)
    if number:
        return _Number(int(number[2]), int(number[3]), bool(number[1]))
    return _Slot(piece[1:-1]) if piece.startswith("{") else piece


@dataclass(frozen=True, slots=True)
class _Topic:
    openings: tuple[_Pattern, ...]
    sentences: tuple[_Pattern, ...]
    plain: bool


def _topic(text: str, plain: bool) -> _Topic:
    openings, sentences = text.strip().split("\n\n")
    return _Topic(
        tuple(_pattern(line) for line in openings.splitlines()),
        tuple(_pattern(line) for line in sentences.splitlines()),
        plain,
    )


_WORDS = {name: tuple(text.splitlines()) for name, text in phrases("words").items()}
_PATTERNS = {name: tuple(_pattern(word) for word in words) for name, words in _WORDS.items()}
_TOPICS = (
    *(_topic(text, False) for text in phrases("accounts").values()),
    *(_topic(text, True) for text in phrases("papers").values()),
)
_LEAD, _ASIDE = _pattern("{lead} "), _pattern(", {aside}.")
# What a sentence may start with and go on in lower case after a lead.
_LOWERABLE = ("The ", "Its ", "A ", "An ", "It ", "Most ", "Some ", "No ", "About ", "Nobody ")
# Words that keep their value throughout a passage.
_ONCE = (
    "animal",
    "building",
    "dispute",
    "instrument",
    "machine",
    "paper",
    "service",
    "sport",
    "subject",
)
_VOWEL_AFTER_A = re.compile(r"\b([Aa]) (?=[AEIOaeio])")


@dataclass(frozen=True, slots=True)
class GeneratedCorpus:
    """Passages of invented English, about 150 tokens each, without end.

    The same seed gives the same text, byte for byte, on every platform and Python.
    """

    seed: int = 0
    name: str = field(default="the generated corpus", init=False)

    def passages(self) -> Iterator[str]:
        """Yields all passages from the first on."""
        return (self.passage(number) for number in count())

    def passage(self, number: int) -> str:
        """Returns passage ``number``; the others need not be made before."""
        draw = Draw("text", self.seed, number)
        topic = draw.pick(_TOPICS)
        cast = _cast(draw)
        sentences = [_sentence(draw.pick(topic.openings), cast, draw)]
        for pattern in draw.sample(topic.sentences, draw.between(5, 8)):
            sentence = _sentence(pattern, cast, draw)
            sentences.append(sentence if topic.plain else _dressed(sentence, cast, draw))
        return _VOWEL_AFTER_A.sub(r"\1n ", " ".join(sentences))


def _cast(draw: Draw) -> dict[str, str]:
    """Draws what keeps its name throughout a passage."""
    place, place2 = _place(draw), _place(draw)
    surname, surname2 = draw.sample(_WORDS["last"], 2)
    first, first2 = draw.sample(_WORDS["first"], 2)
    year = draw.between(1790, 1985)
    return {
        "place": place,
        "place2": place2,
        "person": f"{first} {surname}",
        "person2": f"{first2} {surname2}",
        "surname": surname,
        "surname2": surname2,
        "firm": f"the {place} {draw.pick(_WORDS['firmkind'])}",
        "org": f"the {place} {draw.pick(_WORDS['orgkind'])}",
        "org2": f"the {place2} {draw.pick(_WORDS['orgkind'])}",
        "river": draw.pick(_WORDS["placehead"]),
        "early": str(year - draw.between(90, 600)),
        "year": str(year),
        "later": str(year + draw.between(2, 34)),
        "recent": str(draw.between(2004, 2024)),
    }


def _place(draw: Draw) -> str:
    return draw.pick(_WORDS["placehead"]) + draw.pick(_WORDS["placetail"])


def _sentence(pattern: _Pattern, cast: dict[str, str], draw: Draw) -> str:
    text = _fill(pattern, cast, draw)
    return text[0].upper() + text[1:]


def _dressed(sentence: str, cast: dict[str, str], draw: Draw) -> str:
    """Gives some sentences a lead or an aside, which makes few patterns many."""
    if sentence.startswith(_LOWERABLE) and draw.chance(0.2):
        sentence = _sentence(_LEAD, cast, draw) + sentence[0].lower() + sentence[1:]
    elif len(sentence) < 100 and draw.chance(0.2):
        sentence = sentence[:-1] + _fill(_ASIDE, cast, draw)
    return sentence


def _fill(pattern: _Pattern, cast: dict[str, str], draw: Draw) -> str:
    words = []
    for piece in pattern:
        if isinstance(piece, str):
            words.append(piece)
        elif isinstance(piece, _Number):
            number = draw.between(piece.low, piece.high)
            words.append(f"{number:,}" if piece.thousands else str(number))
        elif piece.name in cast:
            words.append(cast[piece.name])
        else:
            options = _PATTERNS[piece.name.removeprefix("other_")]
            word = _fill(draw.pick(options), cast, draw)
            while word in words:  # not "a dish of trout and trout"
                word = _fill(draw.pick(options), cast, draw)
            if piece.name in _ONCE:
                cast[piece.name] = word
            words.append(word)
    return "".join(words)

"""Questions over documents of which some only make sense behind another one.

Documents hold facts, `ATTRIBUTE NAME VALUE .`; some name their entity ("city bob paris ."), others
say "they" ("city they paris .") for the entity that the last "about NAME ." line introduced,
perhaps in an EARLIER document: a cross question. Answering it needs two documents, and the binding
happens on the document's own tokens, so KV of a chunk that was computed without its predecessors
cannot hold it. The model in `tinyqa/` was trained on this task; its vocabulary is `VOCABULARY`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


def _words(text: str) -> list[str]:
    return text.split()


NAMES = _words("""
alice bob carol dave erin frank grace henry irene jack kate liam mona nina oscar paula
quinn rosa sam tina uma victor wendy xena yusuf zoe adam bella carl diana emil fiona george hanna
ivan julia kevin laura marco nora""")
ATTRIBUTES = {
    "city": _words("paris london berlin madrid rome vienna oslo prague lisbon dublin athens cairo"),
    "color": _words("red blue green yellow black white purple orange brown pink gray violet"),
    "pet": _words("cat dog horse rabbit parrot turtle snake goat hamster lizard fish duck"),
    "food": _words("rice bread soup pasta salad pizza cheese fish_pie beans curry tofu steak"),
    "job": _words("baker nurse pilot farmer lawyer tailor painter singer welder miner judge clerk"),
    "tool": _words("hammer saw drill wrench chisel rope ladder shovel axe knife brush needle"),
}
FILLER = _words("""
and so then also meanwhile later today again often the a of in on with near under over
very quite rather some many few old new big small long short nice calm loud early late north south
east west river hill road bridge market garden""")
SPECIAL = ["<pad>", "<bos>", "<eos>", "<doc>", "<q>", "<a>", ".", "about", "they"]
VALUES = [value for values in ATTRIBUTES.values() for value in values]
VOCABULARY = [*SPECIAL, *NAMES, *ATTRIBUTES, *VALUES, *FILLER]
ID = {word: number for number, word in enumerate(VOCABULARY)}
BOS = ID["<bos>"]


@dataclass(frozen=True, slots=True)
class Fact:
    """What a document says. `kind` is named, local ("they" of the same document) or cross."""

    kind: str
    name: str
    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt's tokens, where its segments start (the last one is the question), the answer's."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    answer: int


def documents(rng: random.Random, count: int) -> tuple[list[list[str]], list[Fact]]:
    """`count` documents as words, and their facts."""
    pool = rng.sample(NAMES, count + 2)
    topics = rng.sample(pool, count)
    # Few attributes: matching the attribute alone must not be enough.
    attributes = rng.sample(list(ATTRIBUTES), rng.choice((1, 2, 2, 3)))
    used: set[tuple[str, str]] = set()
    texts: list[list[str]] = []
    facts: list[Fact] = []
    topic, home = "", -1
    for number in range(count):
        words = ["<doc>"]
        if number == 0 or rng.random() > 0.5:
            topic, home = topics[number], number
            words += ["about", topic, "."]
        for _ in range(rng.randint(2, 4)):
            pronoun = rng.random() < 0.6
            name = topic if pronoun else rng.choice(pool)
            free = [a for a in attributes if (name, a) not in used]
            if not free:
                continue
            attribute = rng.choice(free)
            value = rng.choice(ATTRIBUTES[attribute])
            used.add((name, attribute))
            words += [attribute, "they" if pronoun else name, value, "."]
            kind = "named" if not pronoun else "local" if home == number else "cross"
            facts.append(Fact(kind, name, attribute, value))
            if rng.random() < 0.3:
                words += [rng.choice(FILLER) for _ in range(rng.randint(1, 5))] + ["."]
        texts.append(words)
    return texts, facts


def questions(seed: int, count: int, docs: int, kinds: tuple[str, ...]) -> list[Question]:
    """`count` prompts of `docs` documents, each with a question about a fact of one of `kinds`."""
    rng = random.Random(seed)
    found: list[Question] = []
    while len(found) < count:
        texts, facts = documents(rng, docs)
        able = [fact for fact in facts if fact.kind in kinds]
        if not able:
            continue
        fact = rng.choice(able)
        ids, starts = [BOS], [0]
        for number, words in enumerate(texts):
            if number:
                starts.append(len(ids))
            ids += [ID[word] for word in words]
        starts.append(len(ids))
        ids += [ID[word] for word in ("<q>", fact.attribute, fact.name)]
        found.append(Question(tuple(ids), tuple(starts), ID[fact.value]))
    return found

"""Text without end that repeats for its seed and little else."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import islice

from workloads import GeneratedCorpus
from workloads.generated import phrases

# Of the first 300 passages of seed 0. A change of words or patterns changes it, and with it every
# generated prompt: numbers of runs before and after can't be compared. So it shows up here.
DIGEST = "706be5e9665cad78f76a2635b86ba4cbeb26e4780968107ec49352522badb6a2"


def passages(seed: int, count: int) -> list[str]:
    return list(islice(GeneratedCorpus(seed).passages(), count))


def test_the_text_of_a_seed_is_fixed_byte_for_byte() -> None:
    text = "\n\n".join(passages(0, 300))
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


def test_every_reading_starts_anew_and_passages_can_be_had_alone() -> None:
    corpus = GeneratedCorpus(4)
    first = list(islice(corpus.passages(), 20))
    assert list(islice(corpus.passages(), 20)) == first
    assert corpus.passage(17) == first[17]


def test_seeds_and_passages_differ() -> None:
    everything = [text for seed in range(5) for text in passages(seed, 200)]
    assert len(set(everything)) == len(everything)


def test_every_slot_is_filled() -> None:
    for text in passages(1, 2000):
        assert not re.search(r"[{}#_\n]|  |\s[,.;]|[.,;][.,;]", text)


def test_every_pattern_can_be_reached() -> None:
    """Each topic's lines, with the slots as wildcards, match some sentence of much text."""
    text = "\n".join(passages(2, 4000))
    for topic in (*phrases("accounts").values(), *phrases("papers").values()):
        for line in topic.split("\n"):
            # The longest run without slots; the first letter may follow a lead in lower case.
            run = max(re.split(r"\{[^}]+\}", line), key=len)[1:].rstrip(".")
            assert run in text, line


def test_words_are_well_formed() -> None:
    for name, text in phrases("words").items():
        options = text.splitlines()
        assert len(options) == len(set(options)) >= 4, name
        assert all(option == option.strip() and option for option in options), name


def test_articles_agree() -> None:
    text = " ".join(passages(3, 3000))
    assert not re.search(r"\b[Aa] [aeio]", text)
    assert re.search(r"\b[Aa]n [aeio]", text)
    assert not re.search(r"\b[Aa]n [^aeiouAEIOU]", text)


def test_no_word_stands_twice_in_a_row() -> None:
    text = " ".join(passages(3, 3000))
    assert not re.search(r"\b(\w+) (?:and )?\1\b", text)


def test_passages_read_like_prose() -> None:
    for text in passages(6, 500):
        sentences = re.split(r"(?<=[.?]) (?=[A-Z0-9])", text)
        assert 6 <= len(sentences) <= 9
        assert all(s[0].isupper() or s[0].isdigit() for s in sentences)
        assert text.endswith(".")
        assert 300 < len(text) < 1500


def test_little_repeats() -> None:
    """Of all runs of 16 words, what a chunk would hold, almost none occurs twice."""
    words = " ".join(passages(7, 1500)).split()
    runs = Counter(tuple(words[i : i + 16]) for i in range(len(words) - 16))
    assert sum(n - 1 for n in runs.values()) / len(words) < 0.005
    assert len(set(words)) > 2500


def test_a_passage_speaks_of_the_same_things() -> None:
    journeys = 0
    for text in passages(8, 2000):
        start = re.match(r"The expedition left (\w+) ", text)
        print_place = re.search(r"was printed in (\w+) in", text)
        if start and print_place:
            journeys += 1
            assert print_place[1] == start[1]
    assert journeys > 10

"""Answers against the right ones: F1 and exact match.

As SQuAD's evaluation has it (Rajpurkar et al. 2016, section 6.1), which MuSiQue took over: lower
case, without punctuation, the articles a, an, the and superfluous blanks; F1 over the bag of words;
the best of all right answers counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from reports.sample import Sample

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """What is compared."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_of(output: str) -> str:
    """The answer in what a model wrote: its first line that is not empty."""
    return next((line.strip() for line in output.splitlines() if line.strip()), "")


def f1(answer: str, right: Sequence[str]) -> float:
    """From 0 to 1; 0 if there is no right answer."""
    return max((_f1(normalised(answer).split(), normalised(r).split()) for r in right), default=0.0)


def exact(answer: str, right: Sequence[str]) -> float:
    """1 if it equals a right answer, else 0."""
    return float(any(normalised(answer) == normalised(r) for r in right))


def scored(sample: Sample, answer: str, right: Sequence[str]) -> Sample:
    """The sample with both scores of its answer."""
    return replace(sample, f1=f1(answer, right), exact=exact(answer, right))


def _f1(answer: list[str], right: list[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    same = (Counter(answer) & Counter(right)).total()
    return 2 * same / (len(answer) + len(right))

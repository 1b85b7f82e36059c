"""The workload ``trace``: a trace's requests, with invented tokens that share as they did."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from workloads.generated import GeneratedCorpus
from workloads.request import Part, Prompt, Request, TokenIds
from workloads.traces.reader import ReadOptions, TraceRequest
from workloads.traces.trace import open_trace


@dataclass(frozen=True, slots=True)
class Replay:
    """The plan of a replay. ``requests``: the first so many by arrival, None for all. ``speed_up``
    divides the times, ``scale`` multiplies all lengths; ``seed`` decides the tokens. Raises
    ``ValueError``, one line, for a value out of range."""

    path: Path
    format: str | None = None
    requests: int | None = None
    speed_up: float = 1.0
    scale: float = 1.0
    seed: int = 0
    chunk_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.speed_up < float("inf"):
            raise ValueError(f"speed-up: {self.speed_up} must be a finite number above 0")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale: {self.scale} must be above 0 and at most 1")
        if self.requests is not None and self.requests < 1:
            raise ValueError(f"requests: {self.requests} is too small; it must be at least 1")


def replay(
    plan: Replay,
    encode: Callable[[str], Sequence[int]],
    bos: int | None,
    warn: Callable[[str], None] | None = None,
) -> list[Request]:
    """Returns the trace's requests in the order of arrival, from time 0 on.

    A prompt is its chunks (or, where the trace tells them, its segments) as tokens, then as many
    tokens that no other prompt has as its length asks for. With ``scale``, a chunk of c tokens has
    round(c x scale), at least 1, and the rest of the prompt and the output shrink alike. ``bos``,
    if given, comes before all that. ``warn`` is given a report of malformed lines. The same
    arguments give the same requests. Raises ``TraceError`` if the trace can't be read and
    ``ValueError`` if chunks get too short to differ.
    """
    trace = open_trace(plan.path, plan.format, ReadOptions(chunk_tokens=plan.chunk_tokens))
    numbered = enumerate(trace.requests())
    # In memory are those that are replayed; ties keep the file's order.
    if plan.requests is None:
        chosen = sorted(numbered, key=_arrival)
    else:
        chosen = heapq.nsmallest(plan.requests, numbered, key=_arrival)
    bad = trace.malformed
    if bad.count and warn is not None:
        warn(f"{plan.path}: {bad.told()} and were left out; {bad.examples[0]}")
    if not trace.reader.shares and warn is not None:
        warn(
            f"{plan.path} ({trace.format}) tells lengths and arrivals only: requests share nothing"
            " here, and hits and speed-ups say nothing of the real ones"
        )
    if trace.guess and warn is not None:
        warn(f"{plan.path}: guessed: {trace.guess}")
    tokens = ChunkTokens.from_text(encode, plan.seed)
    start = chosen[0][1].arrival_s
    first = () if bos is None else (Part("padding", np.array([bos], np.int32)),)
    requests = []
    for number, request in chosen:
        prompt = Prompt(
            request.id if request.id else str(number),
            request.session or f"r{number}",
            (*first, *_parts(request, number, plan.scale, tokens)),
        )
        time = (request.arrival_s - start) / plan.speed_up
        requests.append(prompt.request(time, max(1, round(request.output_tokens * plan.scale))))
    return _with_own_ids(requests)


def _parts(request: TraceRequest, number: int, scale: float, tokens: ChunkTokens) -> list[Part]:
    parts = []
    if request.segments:
        for segment in request.segments:
            length = max(1, round(segment.tokens * scale)) if segment.tokens else 0
            parts.append(Part(segment.kind, tokens.segment(segment.id, length)))
        rest = request.input_tokens - sum(segment.tokens for segment in request.segments)
    else:
        length = max(1, round(request.chunk_tokens * scale))
        named: list[TokenIds] = [tokens.chunk(name, length) for name in request.chunks.tolist()]
        if named:
            parts.append(Part("history", np.concatenate(named)))
        rest = request.input_tokens - len(request.chunks) * request.chunk_tokens
    shrunk = round(rest * scale)
    if not shrunk and not parts:
        shrunk = 1
    parts.append(Part("question", tokens.unique(number, shrunk)))
    return parts


def _with_own_ids(requests: list[Request]) -> list[Request]:
    """Gives requests ids of their own: a trace may use an id twice, a bench may not."""
    if len({request.id for request in requests}) == len(requests):
        return requests
    return [
        Request(f"{i}:{r.id}", r.session, r.arrival_s, r.token_ids, r.segments, r.max_tokens)
        for i, r in enumerate(requests)
    ]


def _arrival(numbered: tuple[int, TraceRequest]) -> tuple[float, int]:
    return numbered[1].arrival_s, numbered[0]


_PASSAGES = 200
_LEAST_ALPHABET = 64
# One bit more than a name has, so that what is nobody's can't be what a name stands for.
_BITS = 65
_MASK = (1 << _BITS) - 1
_WORD = (1 << 64) - 1
_ODD = 0x1D8AF066F5A0E2B0B  # odd: multiplying by it loses nothing


class ChunkTokens:
    """Makes tokens from names: equal ones from equal names, different ones from different names,
    the same in every process.

    Tokens are of ``alphabet``, int32 [a], different ids that are ordinary in the model's language.
    A chunk's name, mixed one to one with the seed, is written with them as digits, which takes
    ``digits`` tokens; what follows is a stream of its own. Raises ``ValueError`` for an alphabet
    below 64 tokens.
    """

    def __init__(self, alphabet: npt.NDArray[np.int32], seed: int) -> None:
        if len(alphabet) < _LEAST_ALPHABET:
            raise ValueError(
                f"the tokenizer knows only {len(alphabet)} different tokens in 200 passages of"
                " text; use a model with a larger vocabulary"
            )
        self._alphabet = alphabet
        self._salt = _mixed64(seed & _WORD)
        self.digits = 1
        while len(alphabet) ** self.digits <= _MASK:
            self.digits += 1

    @classmethod
    def from_text(cls, encode: Callable[[str], Sequence[int]], seed: int) -> ChunkTokens:
        """Makes chunks of the tokens that generated English is made of."""
        found: set[int] = set()
        for passage in islice(GeneratedCorpus(0).passages(), _PASSAGES):
            found.update(encode(passage))
        return cls(np.array(sorted(found), np.int32), seed)

    def chunk(self, name: int, length: int) -> TokenIds:
        """Returns a chunk's tokens, int32 [length]. Raises ``ValueError`` if they are too few to
        tell all names apart."""
        if length < self.digits:
            raise ValueError(
                f"scale: chunks of {length} tokens can't all differ; scale so that they have"
                f" {self.digits} or more, or read the trace in longer chunks"
            )
        return self._tokens(name & _WORD, length)

    def segment(self, name: int, length: int) -> TokenIds:
        """Returns a segment's tokens, int32 [length], of any length: very short ones may be equal
        by chance."""
        return self._tokens(name & _WORD, length)

    def unique(self, number: int, length: int) -> TokenIds:
        """Returns tokens of nobody but request ``number`` (0 or more), int32 [length]."""
        return self._tokens((number & _WORD) | 1 << 64, length)

    def _tokens(self, value: int, length: int) -> TokenIds:
        mixed = ((value ^ self._salt) * _ODD) & _MASK
        mixed ^= mixed >> 33
        mixed = (mixed * _ODD) & _MASK
        digits = []
        rest = mixed
        for _ in range(min(self.digits, length)):
            rest, digit = divmod(rest, len(self._alphabet))
            digits.append(digit)
        places = np.empty(length, np.int64)
        places[: len(digits)] = digits
        if length > len(digits):
            counter = np.arange(length - len(digits), dtype=np.uint64)
            start = np.uint64(_mixed64(mixed & _WORD) ^ mixed >> 64)
            stream = _splitmix(start + counter * np.uint64(0x9E3779B97F4A7C15))
            places[len(digits) :] = stream % np.uint64(len(self._alphabet))
        return self._alphabet[places]


def _mixed64(value: int) -> int:
    return int(_splitmix(np.array([value], np.uint64))[0])


def _splitmix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Applies SplitMix64's finisher: the same numbers in every version of numpy, unlike its
    generators."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: npt.NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return result

"""Finds what of a request could be reused: its beginning as an earlier request had it, its lead,
which is exact, and chunks of segments."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cache_core.blend.matcher import Matcher, Piece, average_key
from cache_core.blend.seen import SeenTable, learning_tokens, sighting_worth
from cache_core.keys import ChunkHasher, Namespace
from lmcache_cli.errors import CellError
from workloads.request import Request

ENCODINGS = ("auto", "system", "bos", "none")
"""The tokens after which segments are encoded: the request's system prompt, a BOS, nothing.
``auto`` is the first of these that the request or the model has."""
Held = Callable[[Sequence[bytes]], Container[bytes]]
"""Says which of some keys a cache holds."""
_TAIL_DOMAIN = b"lmcache.lead/1"
_BEGINNING_DOMAIN = b"lmcache.beginning/1"
_MOST_LEADS = 64
_BEGINNINGS = 0.25
"""The share of the tiers' room for beginnings of prompts: fewer prompts need them than passages."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """How a piece is reused: from the chunk ``key``. One that is ``moved`` was encoded elsewhere:
    its K is turned, and some of its tokens are computed again. ``exact`` says whether it is what a
    full prefill would compute; one that is neither stands as an earlier request blended it."""

    key: bytes
    moved: bool = False
    exact: bool = True


@dataclass(frozen=True, slots=True)
class BlendPrompt:
    """A request's prompt in pieces. ``lead`` are the tokens after which segments are encoded;
    ``leads`` says whether the prompt begins with them. ``pieces`` are those of that beginning,
    keyed as a prefix, and the chunks of segments, before the question; the last of each may be
    shorter than a chunk. ``ends`` says where segments end, by their starts."""

    ids: NDArray[np.int32]
    lead: NDArray[np.int32]
    leads: bool
    pieces: tuple[Piece, ...]
    ends: Mapping[int, int]
    matcher: Matcher

    def shift(self, piece: Piece) -> int:
        """Returns by how many positions a chunk's K is moved: its segment was encoded after the
        lead."""
        return 0 if self.is_lead(piece) else piece.segment - len(self.lead)

    def is_lead(self, piece: Piece) -> bool:
        """Returns whether a piece is of the lead."""
        return self.leads and piece.segment < len(self.lead)

    def average(self, piece: Piece) -> bytes:
        """Returns the key of a piece's average."""
        return average_key(piece.key, self.matcher.hasher)

    def exact(self, piece: Piece) -> bool:
        """Returns whether a piece stands where, and after what, it was encoded: it is exact."""
        return self.leads and piece.segment <= len(self.lead)

    def worth(self, piece: Piece) -> float:
        """Returns what a sighting of a piece counts here: 0 of an exact one."""
        length = self.ends[piece.segment] - piece.segment
        return 0.0 if self.exact(piece) else sighting_worth(piece.segment - len(self.lead), length)


class Prompts:
    """The maker of :class:`BlendPrompt`. Keys differ by lead: KV after another lead is other KV.
    ``seen`` are the chunks that may be reused elsewhere. ``capacities`` says how many chunks tiers
    hold, None if any number."""

    def __init__(
        self,
        namespace: Namespace,
        encoding: str,
        bos: int | None,
        capacities: Mapping[str, int | None],
    ) -> None:
        if encoding == "bos" and bos is None:
            raise CellError("--blend-encoding: bos needs a tokenizer with a BOS; use none")
        self._namespace, self._encoding, self._bos = namespace, encoding, bos
        cpu = (capacities.get("cpu") or 0) * namespace.layout.chunk_tokens
        self.seen = SeenTable(learning=learning_tokens(cpu))
        room = max((chunks for chunks in capacities.values() if chunks is not None), default=None)
        self.beginnings = Beginnings(None if room is None else int(_BEGINNINGS * room))
        self._matchers: OrderedDict[bytes, Matcher] = OrderedDict()

    def of(self, request: Request) -> BlendPrompt:
        """Returns the request's prompt, matched. Raises ``CellError`` if segments are to be encoded
        after a system prompt and it has none."""
        ids, segments = request.token_ids, request.segments
        has_system = len(segments) > 1 and segments[0].kind == "system"
        if self._encoding == "system" and not has_system:
            raise CellError(
                f"--blend-encoding: request {request.id} has no system prompt; use auto"
            )
        system = segments[0].end if has_system and self._encoding in ("auto", "system") else 0
        if system:
            lead = ids[:system]
        elif self._encoding != "none" and self._bos is not None:
            lead = np.array([self._bos], dtype=np.int32)
        else:
            lead = ids[:0]
        leads = len(ids) > len(lead) and np.array_equal(ids[: len(lead)], lead)
        first = len(lead) if leads else 0
        matcher = self._matcher(lead)
        if len(segments) > 1:
            bounds = [(s.start, s.end) for s in segments[:-1]]
            last = min(segments[-1].start, len(ids) - 1)
            pieces = matcher.pieces(ids, bounds, first, last)
        else:
            pieces = matcher.pieces(ids, None, first, len(ids) - 1)
        exact = _lead_pieces(matcher.hasher, lead) if leads else ()
        every = (*exact, *pieces)
        ends = {piece.segment: piece.stop for piece in every}
        return BlendPrompt(ids, lead, leads, every, ends, matcher)

    def usable(self, prompt: BlendPrompt, held: Held, ratio: float) -> dict[Piece, Reuse]:
        """Returns the pieces that may be reused in ``prompt``, and how: those that it begins with
        as an earlier request did; what is exact alone and ``held``; the average of what was seen
        often enough. At ratio 1 there are none, at ratio 0 all are, as they are alone."""
        if ratio >= 1:
            return {}
        chain = {} if ratio == 0 else self.beginnings.chain(prompt, ratio)
        alone = [piece.key for piece in prompt.pieces if prompt.exact(piece)]
        there = held(alone + [key for keys in chain.values() for key in keys])
        found: dict[Piece, Reuse] = {}
        exact = True
        for piece, (plain, blended) in chain.items():
            if exact and prompt.exact(piece) and piece.key in there:
                found[piece] = Reuse(piece.key)
            elif exact and plain in there:
                found[piece] = Reuse(plain)
            elif blended in there:
                found[piece], exact = Reuse(blended, exact=False), False
            else:
                break
        for piece in prompt.pieces:
            if piece in found:
                continue
            own = prompt.exact(piece)
            # ``there`` may have the key of one that stands elsewhere, too: a passage comes twice.
            if ratio == 0 or (own and piece.key in there):
                found[piece] = Reuse(piece.key, moved=not own, exact=own)
            elif self.seen.get(piece.key) is not None:
                found[piece] = Reuse(prompt.average(piece), moved=True, exact=False)
        return {piece: found[piece] for piece in prompt.pieces if piece in found}

    def learnt(self, prompt: BlendPrompt, shown: Sequence[Piece]) -> list[Piece]:
        """Returns which of the pieces that were just seen are to be stored as an average, since
        they are seen often enough now: of a passage that comes twice, those of one place."""
        known = {p.key: p for p in reversed(shown) if prompt.worth(p) > 0}
        return [p for p in shown if known.get(p.key) == p and self.seen.get(p.key) is not None]

    def _matcher(self, lead: NDArray[np.int32]) -> Matcher:
        digest = hashlib.sha256(lead.tobytes()).digest()
        matcher = self._matchers.pop(digest, None)
        if matcher is None:
            extra = self._namespace.extra | {"encoding": "segment alone", "behind": digest.hex()}
            matcher = Matcher(ChunkHasher(replace(self._namespace, extra=extra)))
        self._matchers[digest] = matcher
        if len(self._matchers) > _MOST_LEADS:
            self._matchers.popitem(last=False)
        return matcher


class Beginnings:
    """The KV that prompts had from their first token on, where it stands: another question on the
    same passages costs its own tokens. Chunks of pieces have keys that are chained from the first
    one, some for what is exact, others for what was blended at a ratio.

    At most ``most`` of them are kept (None: any number). They share their tiers with passages, and
    those that no prompt began with for longest make room."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self._kept: OrderedDict[bytes, None] = OrderedDict()

    def chain(self, prompt: BlendPrompt, ratio: float) -> dict[Piece, tuple[bytes, bytes]]:
        """Returns two keys of each piece of a prompt's beginning, as far as pieces follow one
        another: of it exact, and blended at ``ratio``."""
        if self.most == 0:
            return {}
        beside, blended = prompt.matcher.hasher.beside, f"blended {ratio:g}".encode()
        link, end, found = None, 0, {}
        for piece in prompt.pieces:
            if piece.start != end:
                break
            link, end = beside(link, _BEGINNING_DOMAIN + piece.key), piece.stop
            found[piece] = beside(link, b"exact"), beside(link, blended)
        return found

    def keep(
        self, prompt: BlendPrompt, reused: Mapping[Piece, Reuse], ratio: float
    ) -> tuple[dict[Piece, bytes], list[bytes]]:
        """Returns what of a prompt that was served over ``reused`` is to be kept where it stands,
        and the keys of what is not to be kept any longer. What is exact alone is stored so."""
        if ratio in (0, 1):
            return {}, []
        new: dict[Piece, bytes] = {}
        used: list[bytes] = []
        exact = True
        for piece, (plain, blended) in self.chain(prompt, ratio).items():
            way = reused.get(piece)
            exact = exact and (way is None or way.exact)
            key = plain if exact else blended
            if (way is None or way.key != key) and not (exact and prompt.exact(piece)):
                new[piece] = key
            if key in self._kept or piece in new:
                used.append(key)
        # What a prompt begins with outlives what follows, which is found behind that alone.
        for key in reversed(used):
            self._kept.pop(key, None)
            self._kept[key] = None
        gone = []
        while self.most is not None and len(self._kept) > self.most:
            gone.append(self._kept.popitem(last=False)[0])
        return {piece: key for piece, key in new.items() if key in self._kept}, gone

    def clear(self) -> None:
        """Forgets all of them."""
        self._kept.clear()


def covered(pieces: Iterable[Piece], tokens: int) -> NDArray[np.bool_]:
    """Returns which of a prompt's tokens lie in the pieces, ``[tokens]``."""
    mask = np.zeros(tokens, dtype=np.bool_)
    for piece in pieces:
        mask[piece.start : piece.stop] = True
    return mask


def _lead_pieces(hasher: ChunkHasher, lead: NDArray[np.int32]) -> tuple[Piece, ...]:
    size = hasher.chunk_tokens
    keys = hasher.keys(lead).prefix
    pieces = [Piece(i * size, (i + 1) * size, key, 0) for i, key in enumerate(keys)]
    done = len(keys) * size
    if done < len(lead):
        # The namespace of the hasher names the whole lead, so this key can say it in short.
        end = hashlib.sha256(_TAIL_DOMAIN + hasher.namespace.digest()).digest()
        pieces.append(Piece(done, len(lead), end, 0))
    return tuple(pieces)

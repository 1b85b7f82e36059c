"""Finds what of a request could be reused: its lead, which is exact, and content chunks."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cache_core.blend.matcher import Matcher, Piece
from cache_core.keys import ChunkHasher, Namespace
from lmcache_cli.errors import CellError
from workloads.request import Request

ENCODINGS = ("auto", "system", "bos", "none")
"""The tokens after which chunks are encoded: the request's system prompt, a BOS, nothing. ``auto``
is the first of these that the request or the model has."""
_TAIL_DOMAIN = b"lmcache.lead/1"
_MOST_LEADS = 64


@dataclass(frozen=True, slots=True)
class BlendPrompt:
    """A request's prompt in pieces. ``lead`` are the tokens after which chunks are encoded;
    ``leads`` says whether the prompt begins with them. ``exact`` are the pieces of that beginning,
    keyed as a prefix: the last may be shorter than a chunk. ``pieces`` are content chunks, before
    the question."""

    ids: NDArray[np.int32]
    lead: NDArray[np.int32]
    leads: bool
    exact: tuple[Piece, ...]
    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]
    matcher: Matcher

    def shift(self, piece: Piece) -> int:
        """Returns by how many positions a content chunk's K is moved: it was encoded after the
        lead."""
        return piece.start - len(self.lead)

    def in_place(self, piece: Piece) -> bool:
        """Returns whether a content chunk stands where, and after what, it was encoded: exact
        too."""
        return self.leads and piece.start == len(self.lead)


class Prompts:
    """The maker of :class:`BlendPrompt`. Keys differ by lead: KV after another lead is other KV."""

    def __init__(self, namespace: Namespace, encoding: str, bos: int | None) -> None:
        if encoding == "bos" and bos is None:
            raise CellError("--blend-encoding: bos needs a tokenizer with a BOS; use none")
        self._namespace, self._encoding, self._bos = namespace, encoding, bos
        self._matchers: OrderedDict[bytes, Matcher] = OrderedDict()

    def of(self, request: Request) -> BlendPrompt:
        """Returns the request's prompt, matched. Raises ``CellError`` if chunks are to be encoded
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
            starts = tuple(s.start for s in segments)
        else:
            pieces = matcher.pieces(ids, None, first, len(ids) - 1)
            starts = (0, pieces[-1].stop if pieces else first)
        exact = _lead_pieces(matcher.hasher, lead) if leads else ()
        return BlendPrompt(ids, lead, leads, exact, tuple(pieces), starts, matcher)

    def _matcher(self, lead: NDArray[np.int32]) -> Matcher:
        digest = hashlib.sha256(lead.tobytes()).digest()
        matcher = self._matchers.pop(digest, None)
        if matcher is None:
            extra = self._namespace.extra | {"encoding": "alone", "behind": digest.hex()}
            matcher = Matcher(ChunkHasher(replace(self._namespace, extra=extra)))
        self._matchers[digest] = matcher
        if len(self._matchers) > _MOST_LEADS:
            self._matchers.popitem(last=False)
        return matcher


def covered(pieces: Sequence[Piece], tokens: int) -> NDArray[np.bool_]:
    """Returns which of a prompt's tokens lie in the pieces, ``[tokens]``."""
    mask = np.zeros(tokens, dtype=np.bool_)
    for piece in pieces:
        mask[piece.start : piece.stop] = True
    return mask


def _lead_pieces(hasher: ChunkHasher, lead: NDArray[np.int32]) -> tuple[Piece, ...]:
    size = hasher.chunk_tokens
    keys = hasher.keys(lead).prefix
    pieces = [Piece(i * size, (i + 1) * size, key) for i, key in enumerate(keys)]
    done = len(keys) * size
    if done < len(lead):
        # The namespace of the hasher names the whole lead, so this key can say it in short.
        end = hashlib.sha256(_TAIL_DOMAIN + hasher.namespace.digest()).digest()
        pieces.append(Piece(done, len(lead), end))
    return tuple(pieces)

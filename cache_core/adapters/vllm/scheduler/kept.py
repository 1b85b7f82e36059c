"""Decides which chunks of windows and recurrent states are worth keeping: those where another
request may branch off or go on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cache_core.adapters.vllm.scheduler.request_state import RequestState
from cache_core.layout import Group
from cache_core.residency import Recent

_SEEN, _SEEN_S = 1 << 18, 3600.0


class Kept:
    """Which chunks to keep of groups that don't keep everything.

    A hit needs of such a group what is right before its end, so a chunk is worth keeping only where
    a hit can end: at the end of a prompt (the next turn goes on there, and so does the same prompt
    again), at a branch point (where a prompt was seen to leave another's), and at the end of an
    answer. Which place that will be is not known before: what an answer passes is kept until it has
    come further. ``whole``: some group keeps everything, and says by itself how far prompts agree.
    """

    def __init__(self, chunk_tokens: int, whole: bool) -> None:
        self._size = chunk_tokens
        self._whole = whole
        self.renew()

    def renew(self) -> None:
        """Forgets all names: keys are other ones from now on."""
        self._passing: dict[bytes, str] = {}
        self._seen = None if self._whole else Recent(_SEEN_S, _SEEN)

    def branches(
        self, state: RequestState, keys: Sequence[bytes], agree: int, chunks: int
    ) -> frozenset[int]:
        """Returns where the request's prompt branches off others', in chunks: where it does by what
        is known now, that is after ``agree`` chunks if groups that keep everything have so many, of
        which a hit has only ``chunks``."""
        if self._seen is not None:
            agree = next((n for n, key in enumerate(keys) if key not in self._seen), len(keys))
        return state.branches | {agree} if agree > chunks else state.branches

    def seen(self, keys: Iterable[bytes]) -> None:
        """Takes in chunks of a prompt that is computed."""
        if self._seen is not None:
            self._seen.add(keys)

    def prompt(self, state: RequestState) -> int:
        """Returns how many full chunks the request's prompt has."""
        return int(state.request.num_prompt_tokens) // self._size

    def worth(self, state: RequestState, group: Group) -> set[int]:
        """Returns which chunks of the prompt are worth keeping of this group. Of an answer all are,
        for now."""
        tokens = int(state.request.num_prompt_tokens)
        # The same prompt again has to compute its last token.
        ends = {tokens // self._size, (tokens - 1) // self._size, *state.branches}
        return {chunk for end in ends for chunk in group.needed(end, self._size)}

    def keep(self, names: Iterable[bytes]) -> None:
        """Records that these chunks are used or worth keeping, whatever becomes of the answer that
        they were a part of."""
        if self._passing:
            for name in names:
                self._passing.pop(name, None)

    def passed(self, state: RequestState, group: Group, chunk: int, known: bool) -> list[int]:
        """Records that the request's answer got to the end of ``chunk``, which is kept for now; one
        that was ``known`` before is another's to keep. Returns chunks that nobody needs from here
        on, as far as :meth:`theirs` says so."""
        passing = state.passing.setdefault(group.number, [])
        if passing and passing[-1] >= chunk:
            return []
        name = group.name(state.keys[chunk])
        if not known or name in self._passing:
            self._passing[name] = state.request.request_id
        passing.append(chunk)
        first = group.needed(chunk + 1, self._size).start
        gone = [old for old in passing if old < first]
        state.passing[group.number] = passing[len(gone) :]
        return gone

    def theirs(self, state: RequestState, name: bytes) -> bool:
        """Returns whether others may need a chunk that the request's answer has passed; forgets
        it."""
        return bool(self._passing.pop(name, "") != state.request.request_id)

    def ended(self, state: RequestState, groups: Iterable[Group]) -> None:
        """Keeps what the end of the request's answer needs: it has come."""
        for group in groups:
            self.keep(group.name(state.keys[c]) for c in state.passing.get(group.number, ()))
        state.passing.clear()

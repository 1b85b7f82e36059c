"""A set that forgets, against one that remembers when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cache_core.residency import Recent

step = st.one_of(
    st.integers(0, 3),  # seconds that pass
    st.tuples(st.sampled_from(["add", "discard"]), st.lists(st.integers(0, 6), max_size=4)),
)


@given(st.lists(step, max_size=30), st.integers(1, 5), st.integers(1, 5))
def test_keys_are_there_until_too_old_or_too_many(
    history: list[int | tuple[str, list[int]]], seconds: int, most: int
) -> None:
    now = 0
    recent = Recent(seconds, most, lambda: now)
    added: dict[int, int] = {}
    for event in history:
        if isinstance(event, int):
            now += event
            continue
        verb, numbers = event
        if verb == "add":
            recent.add(bytes([n]) for n in numbers)
            for n in numbers:
                added.pop(n, None)
                added[n] = now
            added = dict(list(added.items())[-most:])
        else:
            recent.discard(bytes([n]) for n in numbers)
            for n in numbers:
                added.pop(n, None)
        held = {n for n, at in added.items() if now - at < seconds}
        assert {n for n in range(7) if bytes([n]) in recent} == held
        assert len(held) <= len(recent) <= most
    recent.clear()
    assert len(recent) == 0


def test_what_is_too_old_takes_no_memory() -> None:
    now = 0.0
    recent = Recent(10, 1000, lambda: now)
    for _ in range(100):
        recent.add([now.hex().encode()])
        now += 1
    assert len(recent) == 10

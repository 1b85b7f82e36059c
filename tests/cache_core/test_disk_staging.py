"""Memory between a disk and a place: what is needed of it and no more, and none in use twice."""

from __future__ import annotations

from contextlib import ExitStack

from cache_core.tiers.disk.reader import Staging

CHUNK = 1 << 20
DEPTH = 4
MOST = 16 * DEPTH


def test_each_caller_gets_what_it_needs_and_no_more_than_there_is() -> None:
    staging = Staging(CHUNK, DEPTH)
    assert staging.chunks == MOST
    for wanted, given in ((1, 1), (5, 5), (MOST, MOST), (10 * MOST, MOST)):
        staging.release()
        with staging.borrow(wanted) as buffer:
            assert len(buffer.addresses) == given
            assert buffer.slab.nbytes == given * CHUNK


def test_there_is_room_for_one_to_arrive_while_another_is_copied() -> None:
    assert Staging(1 << 30, 1).chunks == 2


def test_of_many_at_once_the_largest_two_are_kept() -> None:
    staging = Staging(CHUNK, DEPTH)
    with ExitStack() as stack:
        buffers = [stack.enter_context(staging.borrow(n)) for n in (3, 7, 1, 5)]
        assert len({int(buffer.addresses[0]) for buffer in buffers}) == 4
    with staging.borrow(6) as one, staging.borrow(2) as two:
        assert (one.slab.nbytes, two.slab.nbytes) == (7 * CHUNK, 5 * CHUNK)
        assert len(one.addresses) == 6
        with staging.borrow(2) as three:
            assert three.slab.nbytes == 2 * CHUNK, "none was left"
    with staging.borrow(1) as least:
        assert least.slab.nbytes == 5 * CHUNK, "the smaller one that will do"


def test_what_a_call_left_behind_may_use_is_nobody_elses() -> None:
    staging = Staging(CHUNK, DEPTH)
    with staging.borrow(4) as buffer:
        buffer.left = True
        kept = buffer.slab  # as the call has it
    with staging.borrow(4) as another:
        assert another.slab is not kept

"""A plan as it goes to other processes."""

from __future__ import annotations

import pickle

import pytest

from cache_core import _native
from cache_core.plan import ENGINE, NOWHERE, Move, Plan
from tests.cache_core.memory_engine import key

MOVES = (
    Move(key(1), 0, NOWHERE, -1),
    Move(key(2), 1, 2, -1),
    Move(key(3), ENGINE, 0, 1 << 40),
)


@pytest.mark.parametrize("moves", [(), MOVES])
def test_a_plan_comes_out_of_a_pickle_as_it_was(moves: tuple[Move, ...]) -> None:
    plan = pickle.loads(pickle.dumps(Plan(moves)))
    assert plan == Plan(moves)
    assert all(type(move) is Move for move in plan.moves)
    assert plan.from_engine == bool(moves)


def test_a_million_moves_are_not_a_million_objects_in_a_pickle() -> None:
    packed = pickle.dumps(Plan(MOVES * 1000))
    assert len(packed) < 50 * len(MOVES) * 1000


@pytest.mark.parametrize("bad", [((key(1), 0),), ((b"short", 0, 0, 0),), ((1, 2, 3, 4),), (7,)])
def test_what_is_no_move_is_refused(bad: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        _native.pack_moves(bad)  # type: ignore[arg-type]


def test_what_is_not_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="no packed moves"):
        _native.unpack_moves(b"x" * 47, Move)
    with pytest.raises(TypeError, match="subclass of tuple"):
        _native.unpack_moves(b"", int)  # type: ignore[arg-type]

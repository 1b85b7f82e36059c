"""Tiers of third parties, found by entry point or by module:Class."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_core.tiers import TierError
from cache_core.tiers.plugin import known_plugins, open_plugin

_CODE = """
from cache_core.tiers import NullTier

class Mine(NullTier):
    def __init__(self, name, capacity, chunk_bytes, depth="1"):
        super().__init__(name, capacity)
        self.seen = (chunk_bytes, int(depth))

class Holder:
    Inner = Mine

class Bare:
    # no more than the verbs, and no class of ours above it

    def __init__(self, name, capacity, chunk_bytes):
        self.name, self.capacity, self._tier = name, capacity, NullTier(name, capacity)

    def __len__(self):
        return len(self._tier)

    def contains(self, keys):
        return self._tier.contains(keys)

    def read(self, keys, place):
        return self._tier.read(keys, place)

    def write(self, keys, place):
        return self._tier.write(keys, place)

    def discard(self, keys):
        self._tier.discard(keys)

    def place(self, keys):
        return None

    def close(self):
        self._tier.close()

class Timely(NullTier):
    # says what it is where it is made
    def __init__(self, name, capacity, chunk_bytes):
        super().__init__(name, capacity)
        self.shared, self.keeps_time, self.counters = True, False, {"calls": 1}

def half(name, capacity, chunk_bytes):
    return object()

def refuses(name, capacity, chunk_bytes):
    raise OSError("the device is on fire")
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with entry points on the path."""
    (tmp_path / "their_tiers.py").write_text(_CODE)
    info = tmp_path / "their_tiers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tiers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lmcache.tiers]\nmine = their_tiers:Mine\nbroken = their_tiers:Nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("spec", ["mine", "their_tiers:Mine", "their_tiers:Holder.Inner"])
def test_a_tier_is_opened_with_what_was_asked_for(spec: str) -> None:
    tier = open_plugin(spec, "disk", 5, 4096, {"depth": "8"})
    assert (tier.name, tier.capacity) == ("disk", 5)
    assert getattr(tier, "seen", None) == (4096, 8)
    assert tier.write([b"k"], None) == [True]


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "no tier is called nothing .known: broken, mine.; or give module:Class"),
        ("broken", "broken can't be loaded"),
        ("no_such_module:X", "can't be loaded: No module named"),
        ("their_tiers:Absent", "can't be loaded: .*Absent"),
        ("their_tiers:", "can't be loaded"),
        (":Mine", "can't be loaded"),
        ("their_tiers:half", "is no tier: it lacks contains, read, .*name, capacity"),
        ("their_tiers:refuses", "can't be opened: the device is on fire"),
    ],
)
def test_what_is_no_tier_is_told(spec: str, message: str) -> None:
    with pytest.raises(TierError, match=message):
        open_plugin(spec, "disk", 5, 4096)


@pytest.mark.usefixtures("installed")
def test_an_unknown_option_is_the_plugins_to_refuse() -> None:
    with pytest.raises(TierError, match=r"can't be opened: .*unexpected keyword argument 'deep'"):
        open_plugin("mine", "disk", 5, 4096, {"deep": "8"})


@pytest.mark.usefixtures("installed")
def test_the_installed_ones_are_listed() -> None:
    assert {"mine", "broken"} <= set(known_plugins())


def test_a_tier_that_says_no_more_than_it_has_to_is_one(installed: None) -> None:
    tier = open_plugin("their_tiers:Bare", "far", 4, 100)
    assert not (tier.shared or tier.in_memory or tier.keeps_time)
    assert tier.counters is None and tier.recovered() == []
    assert tier.write([b"k"], None) == [True] and tier.contains([b"k"]) == [True]
    assert (tier.name, tier.capacity, len(tier)) == ("far", 4, 1)


def test_a_tier_may_say_what_it_is_where_it_is_made(installed: None) -> None:
    tier = open_plugin("their_tiers:Timely", "far", 4, 100)
    assert (tier.shared, tier.keeps_time, tier.counters) == (True, False, {"calls": 1})

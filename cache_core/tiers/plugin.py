"""Opens tiers that others wrote: by the name of an entry point, or as ``module:Class``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from cache_core.tiers.tier import Tier, TierError
from cache_core.tiers.wrappers import Wrapper

GROUP = "lmcache.tiers"
_VERBS = ("contains", "read", "write", "discard", "place", "close", "__len__")


def known_plugins() -> list[str]:
    """Returns the names of the installed entry points of the group ``lmcache.tiers``."""
    return sorted(entry_points(group=GROUP).names)


def open_plugin(
    spec: str,
    name: str,
    capacity: int | None,
    chunk_bytes: int,
    options: Mapping[str, str] | None = None,
) -> Tier:
    """Opens the tier that ``spec`` names: ``make(name, capacity, chunk_bytes, **options)`` is
    called, where make is what the entry point or ``module:Class`` is.

    ``capacity`` is in chunks, None is unbounded. Imports and runs the plugin's code. Raises
    :class:`TierError` if there is none, it can't be loaded or opened, or is no tier.
    """
    make = find_plugin(spec)
    try:
        tier = make(name, capacity, chunk_bytes, **(options or {}))
    except TierError:
        raise
    except Exception as error:
        raise TierError(f"the tier {spec} can't be opened: {error}") from error
    missing = [verb for verb in _VERBS if not callable(getattr(tier, verb, None))]
    missing += [field for field in ("name", "capacity") if not hasattr(tier, field)]
    if missing:
        raise TierError(f"{spec} is no tier: it lacks {', '.join(missing)}")
    return tier if isinstance(tier, Tier) else _Plugin(tier)


class _Plugin(Wrapper):
    """A tier of others, and the defaults of what it does not say itself."""

    def __init__(self, tier: Any) -> None:
        self.name, self.capacity, self._tier = tier.name, tier.capacity, tier
        self.shared = bool(getattr(tier, "shared", False))
        self.in_memory = bool(getattr(tier, "in_memory", False))

    @property
    def keeps_time(self) -> bool:  # type: ignore[override]
        return bool(getattr(self._tier, "keeps_time", False))

    @property
    def counters(self) -> Any:
        return getattr(self._tier, "counters", None)

    def recovered(self) -> list[bytes]:
        ask = getattr(self._tier, "recovered", None)
        return list(ask()) if ask is not None else []


def find_plugin(spec: str) -> Any:
    """Returns what ``spec`` names, to be called by :func:`open_plugin`. Imports the plugin's code.
    Raises :class:`TierError` if there is none or it can't be loaded."""
    found: Iterable[EntryPoint] = [EntryPoint(spec, spec, GROUP)]
    if ":" not in spec:
        found = entry_points(group=GROUP, name=spec)
        if not found:
            known = ", ".join(known_plugins()) or "none is installed"
            raise TierError(f"no tier is called {spec} (known: {known}); or give module:Class")
    try:
        return next(iter(found)).load()
    except (ImportError, AttributeError, ValueError) as error:
        raise TierError(f"the tier {spec} can't be loaded: {error}") from error

"""Where this program keeps files of its own: converted weights, what was verified."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """``lmcache-bench`` below ``$XDG_CACHE_HOME`` or ``~/.cache``; not made here."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmcache-bench"

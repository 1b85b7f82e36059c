"""Closes at the end of the process what nobody has closed."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Protocol

EXIT_TIMEOUT_S = 5.0


class Closable(Protocol):
    """An object that can be closed within a given time."""

    def close(self, timeout_s: float) -> None: ...


def at_exit(thing: Closable) -> Callable[[], None]:
    """Closes ``thing``, if it still exists then, within ``EXIT_TIMEOUT_S`` seconds when the
    interpreter ends, but not in a forked child. Returns what calls that off."""
    call = partial(_close, weakref.ref(thing), os.getpid())
    atexit.register(call)
    return partial(atexit.unregister, call)


def _close(thing: weakref.ref[Closable], process: int) -> None:
    here = thing()
    if here is not None and process == os.getpid():
        here.close(EXIT_TIMEOUT_S)

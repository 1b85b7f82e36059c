"""Cells that can't be measured: each says why, and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lmcache_cli.bench.cells import Cell
from lmcache_cli.errors import EXIT_FAILED, CellError, UserError

logger = logging.getLogger("lmcache")


@dataclass(frozen=True, slots=True)
class Refused:
    """A cell and the error that ended it, or kept it from being opened."""

    cell: Cell
    error: Exception

    @property
    def reason(self) -> str:
        """One line."""
        text = (str(self.error).strip() or "no reason given").splitlines()[0]
        named = isinstance(self.error, UserError)
        return text if named else f"{type(self.error).__name__}: {text}"


class Refusals:
    """Notes the cells that are left out. ``say`` is told of each reason at once; without it the
    first one ends the measurement, as any error does."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.found: dict[int, Refused] = {}
        self._say = say

    @property
    def exit_code(self) -> int:
        """0 without refusals; else the first one's."""
        for refused in self.found.values():
            return refused.error.exit_code if isinstance(refused.error, UserError) else EXIT_FAILED
        return 0

    def __contains__(self, cell: Cell) -> bool:
        return cell.index in self.found

    def add(self, cell: Cell, error: Exception) -> None:
        """Leaves the cell out from here on. Raises the error where none may be."""
        if self._say is None:
            raise error
        self.found[cell.index] = Refused(cell, error)
        self._say(f"{cell.reuse} can't be measured: {self.found[cell.index].reason}")

    @contextmanager
    def of(self, cell: Cell) -> Iterator[None]:
        """What is done for a cell alone. Its own errors end it, and so do torch's (a GPU's memory
        that is full, a kernel that doesn't start)."""
        try:
            yield
        except CellError as error:
            self.add(cell, error)
        except (RuntimeError, MemoryError) as error:
            if self._say is not None:
                logger.warning("in a cell of reuse %s", cell.reuse, exc_info=True)
            self.add(cell, error)

    def raise_first(self) -> None:
        """Raises the first refusal's error, where nothing else was measured."""
        for refused in self.found.values():
            raise refused.error

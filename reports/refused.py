"""Cells of a run that could not be measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reports.summary import CellMeta


@dataclass(frozen=True, slots=True)
class RefusedCell:
    """What a cell is, and in one line why it was not measured, or not to its end."""

    meta: CellMeta
    reason: str

    def to_json(self) -> dict[str, Any]:
        """What it is, as in a run file, and ``reason``."""
        return {**self.meta, "reason": self.reason}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> RefusedCell:
        """The reverse."""
        meta: Any = {name: value for name, value in stored.items() if name != "reason"}
        return cls(meta, stored["reason"])


def refused_lines(refused: Sequence[RefusedCell]) -> list[str]:
    """A line per reuse mode and reason, with the number of cells where there are several."""
    found = Counter((cell.meta["reuse"], cell.reason) for cell in refused)
    return [
        f"Not measured: {reuse}{f' ({count} cells)' if count > 1 else ''}: {reason}"
        for (reuse, reason), count in found.items()
    ]

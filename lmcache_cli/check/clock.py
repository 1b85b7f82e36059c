"""How long a check may go on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Budget:
    """At most ``rounds`` per cell, and ``seconds`` in all from its making on."""

    rounds: int
    seconds: float
    began: float = field(default_factory=time.monotonic)

    def spent(self, rounds: int, cell: int, cells: int) -> bool:
        """Whether cell number ``cell`` of ``cells`` has had its share."""
        until = self.began + self.seconds * (cell + 1) / cells
        return rounds >= self.rounds or time.monotonic() >= until

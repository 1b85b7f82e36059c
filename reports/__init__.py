"""Turns raw samples into numbers, tables and JSON. Nothing here measures, and nothing here prints.

``reports.load(paths)`` is for notebooks: run files as a pandas DataFrame, see :func:`.stored.load`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "load":
        from reports.stored import load  # what reads files is slow to import

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

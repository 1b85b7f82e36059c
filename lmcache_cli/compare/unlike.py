"""What keeps two runs from being compared."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lmcache_cli.compare.stored import StoredRun
from lmcache_cli.errors import UserError

_MAY_DIFFER = ("version",)
"""A new version is what is judged."""


def refuse_unlike(
    base: Sequence[StoredRun], new: Sequence[StoredRun], allowed: Collection[str]
) -> list[str]:
    """Raises ``UserError`` that lists every fact in which runs differ but for ``allowed``; returns
    a warning for each difference that was allowed."""
    runs = [*base, *new]
    differences: dict[str, str] = {}
    tools = {run.tool for run in runs}
    if len(tools) > 1:
        differences["tool"] = " and ".join(sorted(tools))
    names = sorted({name for run in runs for name in run.facts} - set(_MAY_DIFFER))
    for name in names:
        values = list(dict.fromkeys(run.facts[name] for run in runs if name in run.facts))
        if len(values) > 1:
            differences[name] = " and ".join(_short(value) for value in values[:3])
    known = {*names, "tool", "cells"}
    for name in allowed:
        if name not in known:
            raise UserError(f"--allow-different: {name!r} is none of {', '.join(sorted(known))}")
    refused = {name: text for name, text in differences.items() if name not in allowed}
    if refused:
        listed = "; ".join(f"{name}: {text}" for name, text in refused.items())
        raise UserError(
            f"the runs are not alike: {listed}. If that is meant: "
            + " ".join(f"--allow-different {name}" for name in refused)
        )
    return [f"{name} differs: {text}" for name, text in differences.items()]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."

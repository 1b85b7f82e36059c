"""Layers to recompute, as written on a command line: ``none``, ``all``, ``25%``, ``0-3+12``."""

from __future__ import annotations

import re
from math import ceil

_PERCENT = re.compile(r"(\d+(?:\.\d+)?)%")
_SPAN = re.compile(r"(\d+)(?:-(\d+))?")


def layer_groups(text: str, layers: int) -> tuple[range, ...]:
    """Returns the chosen layers of a model of ``layers`` as ascending groups, neighbours joined: a
    group is entered with hidden states from outside, so the fewer the better (DroidSpeak, section
    4).

    ``25%`` is the first quarter, rounded up. Raises ``ValueError`` for another spelling, or a layer
    that the model does not have.
    """
    percent = _PERCENT.fullmatch(text)
    if percent is not None:
        share = float(percent[1]) / 100
        if share > 1:
            raise ValueError(f"{text} is more than all layers")
        return (range(ceil(share * layers)),) if share else ()
    if text in ("none", "all"):
        return (range(layers),) if text == "all" else ()
    chosen: set[int] = set()
    for part in text.split("+"):
        span = _SPAN.fullmatch(part)
        if span is None:
            raise ValueError(f"{text!r} is no set of layers; write none, all, 25% or 0-3+12")
        first, last = int(span[1]), int(span[2] or span[1])
        if last < first:
            raise ValueError(f"{part!r} ends before it begins")
        if last >= layers:
            raise ValueError(f"there is no layer {last}; the model has {layers}, from 0 on")
        chosen.update(range(first, last + 1))
    groups: list[range] = []
    for layer in sorted(chosen):
        if groups and groups[-1].stop == layer:
            groups[-1] = range(groups[-1].start, layer + 1)
        else:
            groups.append(range(layer, layer + 1))
    return tuple(groups)


def entries(groups: tuple[range, ...]) -> tuple[int, ...]:
    """Returns the layers whose input the base must have kept: each group's first, but layer 0,
    whose input is the embedding (DroidSpeak's transition layers, whose hidden states are its E
    cache)."""
    return tuple(group.start for group in groups if group.start)


def layers_text(groups: tuple[range, ...]) -> str:
    """Returns the shortest spelling of the groups: ``none`` or ``0-3+12``."""
    spans = [f"{g.start}-{g.stop - 1}" if len(g) > 1 else str(g.start) for g in groups]
    return "+".join(spans) or "none"

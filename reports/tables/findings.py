"""Says in words what a table answers: what reuse gave, what limited it, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reports.summary import BASES, CellSummary
from reports.units import bytes_text, seconds_text

_MUCH = 0.1
"""A share of the prompt tokens, or of TTFT, that is worth a sentence."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A reason why reuse did not give more: the ``share`` that it cost, of the prompt tokens or of
    TTFT, what it is, and what to try (empty: nothing)."""

    share: float
    what: str
    then: str = ""


def in_words(cells: Sequence[CellSummary]) -> list[str]:
    """Returns a line of two or three sentences per context length of one workload's cells: of the
    row with the lowest mean TTFT, against the row without reuse."""
    lines = []
    for context in dict.fromkeys(cell.meta.get("context_tokens") for cell in cells):
        mine = [cell for cell in cells if cell.meta.get("context_tokens") == context]
        off = next((cell for cell in mine if cell.meta["reuse"] in BASES), None)
        reusing = [cell for cell in mine if cell is not off and cell.ttft.mean]
        if off is None or not off.ttft.mean or not reusing:
            continue
        best = min(reusing, key=lambda cell: cell.ttft.mean or 0.0)
        place = f"Contexts of {context}: " if context and len(cells) > len(mine) else ""
        lines.append(f"{place}{' '.join(_sentences(best, off))}")
    return lines


_TO_TRY = "To try: "


def parted(line: str) -> tuple[str, str]:
    """Parts a line of :func:`in_words` into what it says and the command, to be pasted, at its end;
    empty if it has none."""
    said, _, command = line.partition(f" {_TO_TRY}")
    return said, command


def verdict(cell: CellSummary) -> str:
    """Returns whether a row is ``faster`` or ``slower`` than the one without reuse by the whole
    interval of its speed-up, ``even`` if the interval holds 1, ``wrong`` if exact reuse changed an
    output; empty where there is nothing to judge by."""
    if cell.outputs.identical is False and cell.meta["reuse"] in ("prefix", "vllm"):
        return "wrong"
    low, high = cell.speedup.low, cell.speedup.high
    if low is None or high is None:
        return ""
    return "faster" if low > 1 else "slower" if high < 1 else "even"


def _sentences(cell: CellSummary, off: CellSummary) -> Iterator[str]:
    mean, before = cell.ttft.mean or 0.0, off.ttft.mean or 0.0
    ratio = before / mean if mean else 1.0
    sizes = [f"{tier} {bytes_text(size)}" for tier, size in cell.meta["tiers"].items() if size]
    held = f" ({', '.join(sizes)})" if sizes else ""
    gave = f"{cell.meta['reuse']}{held} makes TTFT"
    gave += f" {ratio:.2f}x as fast in the mean" if ratio >= 1 else f" {1 / ratio:.2f}x as long"
    gave += f" ({seconds_text(before)} to {seconds_text(mean)})"
    if cell.hit_rate is not None:
        gave += f", with {cell.hit_rate:.1%} of the prompt tokens from a cache"
    if cell.prefill_saved_s is not None and cell.prefill_saved_s > 0:
        gave += f" and {seconds_text(cell.prefill_saved_s)} of prefill saved"
    yield gave + "."
    limits = [limit for limit in _limits(cell) if limit.share >= _MUCH]
    if limits:
        worst = max(limits, key=lambda limit: limit.share)
        yield f"{worst.what}."
        if worst.then:
            yield f"{_TO_TRY}{worst.then}"


def _limits(cell: CellSummary) -> Iterator[Limit]:
    meta, tokens = cell.meta, cell.prompt_tokens
    if not tokens or cell.hit_rate is None:
        return
    command = meta.get("command") or ["lmcache", "bench", meta["workload"]]
    work = meta.get("tier_work", {})
    any_position = meta.get("any_position")
    missed = 1 - cell.hit_rate
    tail = (cell.tail_tokens or 0) / tokens
    new = missed - tail
    loading = (cell.load.mean or 0.0) / (cell.ttft.mean or 1.0)
    if loading >= _MUCH:
        tier = max(cell.hit_tokens, key=lambda name: cell.hit_tokens[name])
        what = f"Loading took {loading:.0%} of TTFT, most of it from {tier}: a tier above it, or a"
        yield Limit(loading, f"{what} codec, makes it less", _with(command, "--codec", "fp8"))
    if any_position is not None and meta["reuse"] == "prefix" and any_position > 2 * cell.hit_rate:
        what = f"{any_position:.0%} of the tokens came again, most of them behind other text, where"
        what += " they are no prefix"
        here = meta["engine"] == "transformers"  # no other blends by itself
        then = _with(command, "--reuse", "off,prefix,blend") if here else ""
        yield Limit(any_position - cell.hit_rate, what, then)
        new = 1 - any_position - tail
    bounded = [name for name, size in meta["tiers"].items() if size]
    if bounded and (lost := work[bounded[-1]]["evicted_chunks"] if bounded[-1] in work else 0):
        size = bytes_text(2 * meta["tiers"][bounded[-1]]).replace(" ", "")
        what = f"{bounded[-1]} was too small and evicted {lost:,} chunks"
        yield Limit(max(0.0, new), what, _with(command, f"--{bounded[-1]}-size", size))
        return
    chunk = meta["chunk_tokens"] or 0
    what = f"{tail:.0%} of the tokens stand behind the last full chunk of {chunk}"
    yield Limit(tail, what, _with(command, "--chunk-tokens", f"{chunk // 2 or 1}"))
    what = f"{new:.0%} of the tokens were seen for the first time, which no cache can serve"
    yield Limit(new, what)


def _with(command: Sequence[str], flag: str, value: str) -> str:
    """Returns the command with the flag at this value, and at no other, to be pasted."""
    words = list(map(str, command))
    while flag in words:
        at = words.index(flag)
        del words[at : at + 2]
    return shlex.join([*words, flag, value])

"""One JSON and one table of all that was measured, as far as it has come."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.card import Card
from benchmarks.gpu.files import replace_text
from benchmarks.gpu.goals import Goal, better_ways, floor_s, goals
from benchmarks.gpu.hits import Hits, read_hits
from benchmarks.gpu.stage import Outcome, Stage
from reports.run_file import RunFileError

SCHEMA = "lmcache.gpu/1"
_WORDS = {True: "met", False: "**not met**", None: "not measured"}
_RESULTS = ("facts", "probe", "long", "rag", "transfer")
_FILES = {"transfer": "transfer_rows.json"}
_LOG_LINES = 40


class Summary:
    """Writes ``gpu.json``, ``gpu.md`` and ``gpu.log`` (what all stages have printed) to ``out``;
    stages have left their results in ``results``."""

    def __init__(
        self,
        out: Path,
        results: Path,
        stages: Sequence[Stage],
        card: Card | None,
        about: dict[str, Any],
    ) -> None:
        self._out, self._results, self._card, self._about = out, results, card, about
        self._stages = {stage.name: stage for stage in stages}

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Raises ``OSError`` where ``out`` can't be written."""
        names = {outcome.name for outcome in outcomes}
        found = {name: self._read(name) if name in names else None for name in _RESULTS}
        hits = self._hits() if "long" in names else []
        reached = goals(found["transfer"], hits, found["rag"])
        document = {
            "schema": SCHEMA,
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **self._about,
            "card": asdict(self._card) if self._card else None,
            "goals": [asdict(goal) for goal in reached],
            "stages": [self._stage(outcome) for outcome in outcomes],
            "hits": [asdict(of_tier) for of_tier in hits],
            **found,
        }
        self._out.mkdir(parents=True, exist_ok=True)
        replace_text(self._out / "gpu.json", json.dumps(document, indent=1) + "\n")
        replace_text(self._out / "gpu.md", self._page(outcomes, reached, hits, found))
        logs = ((outcome.name, self._log(outcome.name)) for outcome in outcomes)
        replace_text(self._out / "gpu.log", "".join(f"== {name}\n{text}\n" for name, text in logs))

    def _read(self, name: str) -> Any:
        """A stage's JSON; None where it left none that is whole."""
        try:
            return json.loads((self._results / _FILES.get(name, f"{name}.json")).read_text())
        except (OSError, ValueError):
            return None

    def _hits(self) -> list[Hits]:
        runs = sorted((self._results / "long-runs").glob("*.parquet"))
        try:
            return read_hits(runs[-1]) if runs else []
        except (RunFileError, ImportError):
            return []

    def _log(self, name: str) -> str:
        try:
            return (self._results / f"{name}.log").read_text(errors="replace")
        except OSError:
            return ""

    def _stage(self, outcome: Outcome) -> dict[str, Any]:
        stage = self._stages[outcome.name]
        lines = [] if outcome.status == "passed" else self._log(outcome.name).splitlines()
        told = {"command": stage.command, "remark": stage.remark, "log": lines[-_LOG_LINES:]}
        return asdict(outcome) | told

    def _page(
        self,
        outcomes: Sequence[Outcome],
        reached: Sequence[Goal],
        hits: Sequence[Hits],
        found: dict[str, Any],
    ) -> str:
        parts = [self._heading(found["facts"])]
        rows = [(g.name, g.wanted, g.found, _WORDS[g.met]) for g in reached]
        parts.append(table(("goal", "wanted", "found", ""), rows))
        lines = []
        for outcome in outcomes:
            stage = self._stages[outcome.name]
            told = "; ".join(text for text in (outcome.why, stage.remark) if text)
            lines.append((outcome.name, outcome.status, f"{outcome.seconds:.1f} s", told))
        parts.append(table(("stage", "came to", "took", ""), lines))
        transfer = found["transfer"]
        if transfer and transfer.get("peaks"):
            parts.append(_hit_table(hits, transfer["peaks"]))
            parts.append(_move_table(transfer))
            if transfer["left_out"]:
                parts.append(f"No time in transfer for {'; '.join(transfer['left_out'])}.\n")
        if found["rag"]:
            parts.append(_rag_table(found["rag"]))
        return "\n".join(part for part in parts if part)

    def _heading(self, facts: Any) -> str:
        facts = facts or {}
        card, torch = self._card, facts.get("torch", {})
        told = [
            card.name if card else "no GPU: a rehearsal, whose figures mean nothing",
            f"driver {card.driver}" if card else "",
            f"toolkit {facts.get('kernels', {}).get('toolkit', 'unknown')}",
            f"torch {torch.get('version', 'unknown')} (CUDA {torch.get('cuda') or 'none'})",
            *(
                f"{name} {version}"
                for name, version in facts.get("versions", {}).items()
                if name in ("python", "transformers", "numpy")
            ),
            f"commit {self._about['commit']}",
            f"sources {self._about['sources']}",
        ]
        return f"`make gpu`: {', '.join(text for text in told if text)}.\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown; nothing without rows."""
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(_cell(text) for text in line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _hit_table(hits: Sequence[Hits], rates: dict[str, float]) -> str:
    heads = ("hits in", "tokens", "n", "TTFT ms", "floor", "loading", "tail", "copy GB/s", "cold")
    rows = []
    for one in hits:
        floors = floor_s(one, rates)
        times = (one.ttft_s, floors, one.load_s, one.prefill_s)
        shown = [f"{1e3 * median(values):.1f}" for values in times]
        cold = f"{1e3 * median(one.cold_s):.0f}" if one.cold_s else ""
        rate = sum(one.nbytes) / 1e9 / sum(one.load_s)
        counts = (one.tier, f"{one.tokens:,}", str(len(one.ttft_s)))
        rows.append((*counts, *shown, f"{rate:.1f}", cold))
    return table(heads, rows)


def _move_table(transfer: dict[str, Any]) -> str:
    rows = []
    for size in sorted({row["run_bytes"] for row in transfer["gpu"]}):
        best = better_ways(transfer, size, size)
        for direction in ("h2d", "d2h"):
            shares = [row["of_peak"] for row in best if row["direction"] == direction]
            if shares:
                spread = f"{min(shares):.2f}-{max(shares):.2f}"
                peak = f"{transfer['peaks'][direction]:.1f}"
                cells = (direction, f"{median(shares):.2f}", spread, str(len(shares)), peak)
                rows.append((f"{size / 1024:g} KiB", *cells))
    return table(("runs of", "direction", "of peak", "", "cases", "peak GB/s"), rows)


def _rag_table(rag: dict[str, Any]) -> str:
    rows = []
    for cell in rag["cells"]:
        speedup, p50 = cell["speedup_ttft"], cell["ttft_ms"]["p50"] if cell["n"] else None
        times = (f"{p50:.0f}" if p50 is not None else "", f"{speedup:.2f}x" if speedup else "")
        rows.append((cell["reuse"], str(cell["n"]), *times))
    return table(("rag", "n", "TTFT p50 ms", "speed-up"), rows)

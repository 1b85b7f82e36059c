"""One stored run: its cells in rounds, and the facts in which two runs must agree."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lmcache_cli.check.foreign import read_foreign
from lmcache_cli.errors import UserError
from reports.sample import Sample
from reports.verdict.round import RATES, TIMES, Round, round_of

_NOT_PARAMETERS = (
    *("workloads", "model", "engine", "repeat", "seed", "disk_path", "corpus", "trace"),
    *(
        "url",
        "request_timeout",
        "start_timeout",
        "cache_name",
        "jitter",
        "tier_latency",
        "hardware",
    ),
)
_WORKLOAD_FLAGS = (
    *("documents", "questions", "requests", "question_tokens", "output_tokens", "passages"),
    *("passage_tokens", "corpus_passages", "zipf", "system_tokens", "sessions", "rounds"),
    *("context_tokens", "rate", "concurrency", "warm", "scale", "speed_up", "trace_format"),
)


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One stored run, as it is compared. ``cells`` maps a label to its rounds. ``facts`` are by
    group (``model``, ``engine``, ``workload``, ``hardware``, ``parameters``, ...); runs that are
    compared must agree in those that both have. ``when`` orders runs in time, ``""`` if unknown."""

    path: Path
    tool: str
    cells: dict[str, list[Round]]
    facts: dict[str, str] = field(default_factory=dict)
    when: str = ""
    warnings: tuple[str, ...] = ()
    timed: bool = False
    """Whether it was bound by time, so that its number of requests is chance."""
    parts: Sequence[Mapping[str, Any]] = ()
    """Another tool's own records of the rounds."""


def read_compared(path: Path) -> ComparedRun:
    """Reads a stored run. Raises ``UserError`` for a file that is missing or of no known format,
    ``CheckRecordError`` for what ``check`` keeps."""
    if path.suffix == ".parquet":
        return _ours(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read: {error}; give a run file") from error
    try:
        document: Any = json.loads(text)
    except json.JSONDecodeError:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            document = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}: neither JSON nor JSON lines ({error}); give a run file"
            ) from error
    if isinstance(document, Mapping) and str(document.get("schema", "")).startswith(
        "lmcache.bench/"
    ):
        return _ours_json(path, document)
    found = read_foreign(path, document)
    warnings: tuple[str, ...] = ()
    if "model" not in found.facts:
        warnings = (f"{path}: names no model; make sure that both sides ran the same",)
    return ComparedRun(
        path, found.tool, found.cells, found.facts, found.when, warnings, found.timed, found.parts
    )


def _ours(path: Path) -> ComparedRun:
    from reports.run_file import CheckRecordError, RunFileError, read_run, refuse_check_record

    try:
        samples, meta = read_run(path)
        refuse_check_record(path, meta)
    except CheckRecordError:
        raise
    except RunFileError as error:
        raise UserError(str(error)) from error
    if "config" not in meta or "cells" not in meta:
        raise UserError(f"{path}: a run of kind {meta.get('kind')!r}; give one of lmcache bench")
    by_cell: dict[int, list[Sample]] = {}
    for sample in samples:
        by_cell.setdefault(sample.cell, []).append(sample)
    cells: dict[str, list[Round]] = {}
    indices = sorted(by_cell)
    for described, index in zip(meta["cells"], indices, strict=False):
        mine = by_cell[index]
        repeats = sorted({s.repeat for s in mine})
        # The sums over all repeats are those of the one repeat, if there is but one.
        single = len(repeats) == 1
        busy_s = described.get("busy_s") if single else None
        work = described.get("tier_work") or {}
        evicted = sum(w["evicted_chunks"] for w in work.values()) if single else None
        label = _label(described, cells)
        cells[label] = [
            round_of([s for s in mine if s.repeat == r], busy_s, evicted) for r in repeats
        ]
    warnings = () if meta.get("complete", True) else (f"{path}: the run was interrupted",)
    facts = _facts(meta, meta["cells"])
    asked = sorted({(s.workload, s.request_id, s.prompt_tokens) for s in samples})
    facts["requests"] = hashlib.sha256(repr(asked).encode()).hexdigest()[:12]
    return ComparedRun(path, "lmcache", cells, facts, str(meta.get("started", "")), warnings)


def _ours_json(path: Path, document: Mapping[str, Any]) -> ComparedRun:
    cells: dict[str, list[Round]] = {}
    for cell in document["cells"]:
        known: dict[str, float] = {}
        for name in TIMES:
            for statistic, value in (cell.get(f"{name}_ms") or {}).items():
                if statistic not in ("n", "min", "max") and value is not None:
                    known[f"{name}.{statistic}"] = value / 1e3
        for name in RATES:
            if (value := (cell.get("throughput") or {}).get(name)) is not None:
                known[f"throughput.{name}"] = value
        counted = ("n", "failed", "prompt_tokens", "recomputed_tokens", "bytes_loaded")
        counters = {n: int(cell[n]) for n in (*counted, "bytes_stored") if cell.get(n) is not None}
        counters |= {f"hit_tokens.{t}": v for t, v in (cell.get("hit_tokens") or {}).items()}
        work = cell.get("tier_work")
        if work is not None:
            counters["evicted_chunks"] = sum(w["evicted_chunks"] for w in work.values())
        one = Round(cell["n"], cell["failed"], {}, known, counters, cell.get("hit_rate"))
        cells[_label(cell, cells)] = [one]
    return ComparedRun(path, "lmcache", cells, _facts(document, document["cells"]))


def _label(cell: Mapping[str, Any], taken: Mapping[str, object]) -> str:
    parts = [cell["workload"], cell.get("context_tokens"), cell["reuse"], "+".join(cell["tiers"])]
    label = " ".join(str(part) for part in parts if part)
    same = sum(1 for other in taken if other.partition(" #")[0] == label)
    return f"{label} #{same + 1}" if same else label


def _facts(meta: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    config = meta["config"]
    machine = meta.get("machine") or {}
    facts = {
        "engine": ", ".join(sorted({str(cell["engine"]) for cell in cells})),
        "model": ", ".join(sorted({str(cell["model"]) for cell in cells})),
        "workload": ", ".join(dict.fromkeys(str(cell["workload"]) for cell in cells)),
        "hardware": str(machine.get("fingerprint", "")),
        "seed": str(config.get("seed")),
        "version": str((meta.get("versions") or {}).get("lmcache-bench", "")),
    }
    for name, value in config.items():
        if name in _WORKLOAD_FLAGS or name not in _NOT_PARAMETERS:
            facts[name.replace("_", "-")] = str(value)
    return facts


_MAY_DIFFER = ("version",)
"""The facts in which compared runs may differ: a new version is what is judged."""


def without_copies(runs: Sequence[ComparedRun]) -> tuple[list[ComparedRun], list[str]]:
    """Returns the runs but for files that only repeat others, as the summary of a sweep does, and a
    warning for each of those."""
    singles = [run.parts[0] for run in runs if len(run.parts) == 1]

    def repeated(part: Mapping[str, Any]) -> bool:
        return any(all(part[k] == one[k] for k in part.keys() & one.keys()) for one in singles)

    copies = [run for run in runs if len(run.parts) > 1 and all(map(repeated, run.parts))]
    kept = [run for run in runs if run not in copies]
    return kept, [f"{run.path} repeats runs beside it, and is not counted again" for run in copies]


_LOADS = ("concurrency", "max_concurrency", "request_rate", "rate", "streams")


def cells_of_loads(
    base: Sequence[ComparedRun], new: Sequence[ComparedRun]
) -> tuple[list[ComparedRun], list[ComparedRun]]:
    """Returns both sides with the loads in the names of the cells where each side has runs of the
    same several ones, as the files of a sweep are; there they are no difference between sides."""
    sides = list(base), list(new)
    names = {name for run in (*base, *new) for name in run.facts}
    for name in sorted(n for n in names if n.rpartition(".")[2] in _LOADS):
        values = [{run.facts.get(name, "") for run in side} for side in sides]
        if values[0] == values[1] and len(values[0]) > 1:
            for side in sides:
                side[:] = [_named_by(run, name) for run in side]
    return sides


def _named_by(run: ComparedRun, name: str) -> ComparedRun:
    value = run.facts.get(name, "none")
    cells = {f"{label}, {name} {value}": rounds for label, rounds in run.cells.items()}
    return replace(run, cells=cells, facts={k: v for k, v in run.facts.items() if k != name})


def without_chance(runs: Sequence[ComparedRun]) -> tuple[list[ComparedRun], list[str]]:
    """Returns the runs without counts of requests if any of them was bound by time, and a warning
    that says so."""
    timed = next((run for run in runs if run.timed), None)
    if timed is None:
        return list(runs), []

    def uncounted(one: Round) -> Round:
        kept = {k: v for k, v in one.counters.items() if k not in ("n", "prompt_tokens")}
        return replace(one, counters=kept)

    found = [
        replace(run, cells={k: [uncounted(one) for one in v] for k, v in run.cells.items()})
        for run in runs
    ]
    return found, [f"{timed.path} was bound by time: numbers of requests are not compared"]


def refuse_unlike_runs(
    base: Sequence[ComparedRun], new: Sequence[ComparedRun], allowed: Collection[str]
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
            differences[name] = " and ".join(_short(values[:3]))
    groups = {name.partition(".")[0] for name in names}
    known = {*names, *groups, "tool", "cells"}
    for name in allowed:
        if name not in known:
            raise UserError(f"--allow-different: {name!r} is none of {', '.join(sorted(known))}")
    refused = {
        name: text
        for name, text in differences.items()
        if not {name, name.partition(".")[0]} & set(allowed)
    }
    if refused:
        listed = "; ".join(f"{name}: {text}" for name, text in refused.items())
        raise UserError(
            f"the runs are not alike: {listed}. If that is meant: "
            + " ".join(f"--allow-different {name}" for name in refused)
        )
    return [f"{name} differs: {text}" for name, text in differences.items()]


_SHOWN = 60


def _short(values: Sequence[str]) -> list[str]:
    """Cuts long values that differ to where they do."""
    if max(map(len, values)) <= _SHOWN:
        return list(values)
    places = enumerate(zip(*values, strict=False))
    same = next((at for at, here in places if len(set(here)) > 1), min(map(len, values)))
    same = max(0, same - _SHOWN // 3)
    cut = [("..." if same else "") + value[same:] for value in values]
    return [text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..." for text in cut]

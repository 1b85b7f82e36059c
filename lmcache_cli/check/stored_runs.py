"""One stored run: its cells in rounds, and the facts in which two runs must agree."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmcache_cli.check.foreign import NoRunError, read_foreign
from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.machine import machine
from reports.run_file import CheckRecordError, read_among
from reports.sample import Sample
from reports.stored import EmptyFileError, StoredError, json_of
from reports.verdict.levels import LEAST_RUNS
from reports.verdict.round import RATES, TIMES, Round, measured_by_clock, round_of
from reports.verdict.rule import Rule

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
    *("passage_tokens", "corpus_passages", "zipf", "order", "system_tokens", "sessions", "rounds"),
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
    run = _read(path)
    # Rounds of one day share what the machine did then. Without a time a file is a day of its own.
    day = re.sub(r"\D", "", run.when)[:8] or str(path)
    cells = {
        label: [replace(each, sample=day) for each in rounds] for label, rounds in run.cells.items()
    }
    return replace(run, cells=cells)


def _read(path: Path) -> ComparedRun:
    if path.suffix == ".parquet":
        return _ours(path)
    try:
        document = json_of(path)
    except EmptyFileError as error:
        raise NoRunError(path, "an empty file") from error
    except StoredError as error:
        raise UserError(f"{error}; give a run file") from error
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
    facts = facts_of(meta, meta["cells"])
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
    when = str(document.get("started") or "")
    return ComparedRun(path, "lmcache", cells, facts_of(document, document["cells"]), when)


def _label(cell: Mapping[str, Any], taken: Mapping[str, object]) -> str:
    parts = [cell["workload"], cell.get("context_tokens"), cell["reuse"], "+".join(cell["tiers"])]
    label = " ".join(str(part) for part in parts if part)
    same = sum(1 for other in taken if other.partition(" #")[0] == label)
    return f"{label} #{same + 1}" if same else label


def facts_of(meta: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the facts of :class:`ComparedRun` from what describes a run of ours and its cells."""
    config = meta["config"]
    hardware = meta.get("machine") or {}
    facts = {
        "engine": ", ".join(sorted({str(cell["engine"]) for cell in cells})),
        "model": ", ".join(sorted({str(cell["model"]) for cell in cells})),
        "workload": ", ".join(dict.fromkeys(str(cell["workload"]) for cell in cells)),
        "hardware": str(hardware.get("fingerprint", "")),
        "seed": str(config.get("seed")),
        "version": str((meta.get("versions") or {}).get("lmcache-bench", "")),
        "commit": str(meta.get("commit") or ""),
    }
    for name, value in config.items():
        if name in _WORKLOAD_FLAGS or name not in _NOT_PARAMETERS:
            facts[name.replace("_", "-")] = str(value)
    return facts


_MAY_DIFFER = ("version", "commit")
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
    base: Sequence[ComparedRun],
    new: Sequence[ComparedRun],
    allowed: Collection[str],
    warnings: list[str],
) -> list[str]:
    """Raises ``UserError`` that lists every fact in which runs differ but for ``allowed``; returns
    each difference that was allowed, with the values, and adds a warning of it."""
    runs = [*base, *new]
    differences = differences_of(runs)
    names = {name for run in runs for name in run.facts} - set(_MAY_DIFFER)
    known = {*names, *(name.partition(".")[0] for name in names), "tool", "cells"}
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
    warnings += [f"{name} differs: {text}" for name, text in differences.items()]
    return [f"{name}: {text}" for name, text in differences.items()]


def differences_of(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Returns the facts in which runs differ, each with the values."""
    differences: dict[str, str] = {}
    tools = {run.tool for run in runs}
    if len(tools) > 1:
        differences["tool"] = " and ".join(sorted(tools))
    for name in sorted({name for run in runs for name in run.facts} - set(_MAY_DIFFER)):
        values = list(dict.fromkeys(run.facts[name] for run in runs if name in run.facts))
        if len(values) > 1:
            differences[name] = " and ".join(_short(values[:3]))
    return differences


def read_runs(text: str, side: str, warnings: list[str]) -> list[ComparedRun]:
    """Reads a file, several with commas, or a folder of them, or of folders of them. What ``check``
    keeps is skipped where there are other files, and in a folder what is of no known tool or
    repeats other files, each with a line in ``warnings``. Raises ``UserError``."""
    paths: list[Path] = []
    listed: set[Path] = set()
    for part in filter(None, text.split(",")):
        path = Path(part)
        if path.is_dir():
            inside = _runs_in(path.iterdir()) or _runs_in(path.rglob("*"))
            listed.update(inside)
            paths += inside
        else:
            paths.append(path)
    if not paths:
        raise UserError(f"{side}: {text} holds no run; give run files or a folder of them")

    def skip(path: Path, error: Exception) -> str:
        return error.why if isinstance(error, NoRunError) and path in listed else ""

    try:
        found, skipped = read_among(paths, read_compared, skip)
    except CheckRecordError as error:
        raise UserError(str(error)) from error
    found, copies = without_copies(found)
    warnings += [warning for warning in (*skipped, *copies) if warning not in warnings]
    return found


_STAGES_SUM = "summary_lifecycle_metrics.json"


def _runs_in(paths: Iterable[Path]) -> list[Path]:
    found = sorted(path for path in paths if path.suffix in (".parquet", ".json", ".jsonl"))
    # inference-perf sums its stages up under no load of its own
    staged = {p.parent for p in found if p.match("stage_*_lifecycle_metrics.json")}
    return [p for p in found if p.name != _STAGES_SUM or p.parent not in staged]


def noise_of_history(
    text: str | None, rules: Sequence[Rule], like: ComparedRun
) -> float | dict[str, float] | None:
    """Returns what ``--noise`` says: a share, or of a folder the standard deviation of each rule's
    metric from day to day over its runs that are like ``like``, wider the fewer days it has.
    Raises ``UserError``."""
    if text is None:
        return None
    if not Path(text).is_dir():
        try:
            noise = float(text)
        except ValueError:
            noise = 0.0
        if not 0 < noise < 1:
            raise UserError(
                f"--noise: {text} is neither a share (write 0.05 for 5 %) nor a folder of runs"
            )
        return noise
    from scipy import stats

    runs = [run for run in read_runs(text, "--noise", []) if not differences_of([run, like])]
    found: dict[str, float] = {}
    for rule in rules:
        for label in like.cells:
            days: dict[str, list[float]] = {}
            for each in (each for run in runs for each in run.cells.get(label, [])):
                value = each.value(rule.metric)
                if value is not None and (rule.points or value > 0):
                    days.setdefault(each.sample, []).append(rule.scaled(value))
            if len(days) < LEAST_RUNS:
                continue
            spread = float(np.std([np.mean(values) for values in days.values()], ddof=1))
            fewer = stats.t.isf(0.025, len(days) - 1) / stats.norm.isf(0.025)
            found[rule.metric] = max(found.get(rule.metric, 0.0), spread * float(fewer))
    if not found:
        raise UserError(
            f"--noise: {text} has fewer than {LEAST_RUNS} days of runs like {like.path}; write a"
            " share, or run `lmcache bench` there on more days"
        )
    return found


def read_baseline(path: Path) -> ComparedRun:
    """Reads a run file, or the newest run of this machine in a store: a folder that has one per
    machine, named by its fingerprint. Raises ``UserError``."""
    if not path.is_dir():
        return read_compared(path)
    mine = path / machine()["fingerprint"]
    if not mine.is_dir():
        raise MissingError(
            f"--baseline: {path} has no run of this machine; make one: lmcache bench FLAGS"
            f" --reuse prefix --out {mine}"
        )
    return max(read_runs(str(mine), "--baseline", []), key=lambda run: run.when)


def refuse_elsewhere(stored: ComparedRun, rules: Sequence[Rule]) -> None:
    """Raises ``UserError`` for times of another machine, which are no baseline; its counters
    are."""
    hardware = stored.facts.get("hardware")
    timed = [str(rule) for rule in rules if measured_by_clock(rule.metric)]
    if timed and hardware and hardware != machine()["fingerprint"]:
        raise UserError(
            f"--baseline: {stored.path} was measured on other hardware, so {', '.join(timed)} can't"
            " be judged; measure it here, or judge counters only: --fail-on 'hit_rate<0pp'"
        )


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

"""One stored run: its cells in rounds, and the facts in which two runs must agree."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmcache_cli.check.foreign import read_foreign
from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.machine import machine
from reports.run_file import CheckRecordError, read_among
from reports.sample import Sample
from reports.verdict.levels import LEAST_RUNS
from reports.verdict.round import RATES, TIMES, Round, measured_by_clock, round_of
from reports.verdict.rule import Rule

_NOT_PARAMETERS = (
    *("workloads", "model", "engine", "repeat", "seed", "disk_path", "corpus", "trace"),
    *("url", "request_timeout", "start_timeout", "cache_name", "jitter", "tier_latency"),
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
    return ComparedRun(path, found.tool, {found.cell: found.rounds}, found.facts, found.when)


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


def refuse_unlike_runs(
    base: Sequence[ComparedRun], new: Sequence[ComparedRun], allowed: Collection[str]
) -> list[str]:
    """Raises ``UserError`` that lists every fact in which runs differ but for ``allowed``; returns
    a warning for each difference that was allowed."""
    runs = [*base, *new]
    differences = differences_of(runs)
    known = {name for run in runs for name in run.facts} - set(_MAY_DIFFER) | {"tool", "cells"}
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


def differences_of(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """Returns the facts in which runs differ, each with the values."""
    differences: dict[str, str] = {}
    tools = {run.tool for run in runs}
    if len(tools) > 1:
        differences["tool"] = " and ".join(sorted(tools))
    for name in sorted({name for run in runs for name in run.facts} - set(_MAY_DIFFER)):
        values = list(dict.fromkeys(run.facts[name] for run in runs if name in run.facts))
        if len(values) > 1:
            differences[name] = " and ".join(_short(value) for value in values[:3])
    return differences


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_runs(text: str, side: str, warnings: list[str]) -> list[ComparedRun]:
    """Reads a file, several with commas, or a folder of them. What ``check`` keeps is skipped where
    there are other files, with a line in ``warnings``. Raises ``UserError``."""
    paths: list[Path] = []
    for part in filter(None, text.split(",")):
        path = Path(part)
        if path.is_dir():
            inside = (p for p in path.iterdir() if p.suffix in (".parquet", ".json", ".jsonl"))
            paths += sorted(inside)
        else:
            paths.append(path)
    if not paths:
        raise UserError(f"{side}: {text} holds no run; give run files or a folder of them")
    try:
        found, skipped = read_among(paths, read_compared)
    except CheckRecordError as error:
        raise UserError(str(error)) from error
    warnings += [warning for warning in skipped if warning not in warnings]
    return found


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

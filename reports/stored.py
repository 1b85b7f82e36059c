"""Reads what a report is made from: run files of ``bench``, and files of ``tune --json``."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from reports.run_file import CheckRecordError, RunFileError, read_run, refuse_check_record
from reports.sample import Sample, frame
from reports.summary import BASES, CellMeta, CellSummary, RefusedCell, summarise

TUNE_SCHEMA = "lmcache.tune/1"


class StoredError(Exception):
    """A file that no report can be made from; one line that names it and what to do."""


class EmptyFileError(StoredError):
    """A file with nothing in it."""


def json_of(path: Path) -> Any:
    """Returns a file's JSON, or the list of its JSON lines; in UTF-8, UTF-16 or UTF-32, compressed
    by gzip or not. Raises ``StoredError``, which says what is wrong where."""
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        text = data.decode(json.detect_encoding(data))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoredError(f"{path}: can't be read: {reason}") from error
    if not text.strip():
        raise EmptyFileError(f"{path}: an empty file")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        whole = error
    found: list[Any] = []
    # not splitlines, for which a line separator within a string ends a line too
    for number, line in enumerate(text.split("\n"), 1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            # where no line is whole, what is wrong is said of all of the file
            where = f"line {number}: {error.msg}" if found else str(whole)
            raise StoredError(f"{path}: neither JSON nor JSON lines ({where})") from error
    return found


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run file: ``cells`` are its summaries, in table order, ``samples_of`` their samples."""

    name: str
    meta: Mapping[str, Any]
    cells: Sequence[CellSummary]
    samples_of: Sequence[Sequence[Sample]]

    @property
    def complete(self) -> bool:
        """Returns False if the run was interrupted or found void."""
        return bool(self.meta.get("complete", True))

    @property
    def warnings(self) -> list[str]:
        """Returns the run's warnings, each with its remedy."""
        return list(self.meta.get("warnings", []))

    @property
    def refused(self) -> list[RefusedCell]:
        """Returns the cells that could not be measured, each with its reason."""
        return [RefusedCell.from_json(cell) for cell in self.meta.get("refused", [])]

    @classmethod
    def read(cls, path: str | Path) -> StoredRun:
        """Reads a run file. Raises ``StoredError`` for a file that is missing, damaged, or no run
        of ``bench``; ``CheckRecordError`` for what ``check`` keeps."""
        meta, metas, samples_of = _read_cells(path)
        return cls(Path(path).stem, meta, run_summaries(samples_of, metas), samples_of)


def _read_cells(path: str | Path) -> tuple[dict[str, Any], list[CellMeta], list[list[Sample]]]:
    """Returns a run's metadata, and what each cell is with its samples."""
    try:
        samples, meta = read_run(path)
        refuse_check_record(path, meta)
    except CheckRecordError:
        raise
    except RunFileError as error:
        raise StoredError(str(error)) from error
    by_cell: dict[int, list[Sample]] = {}
    for sample in samples:
        by_cell.setdefault(sample.cell, []).append(sample)
    metas = [cast(CellMeta, dict(cell)) for cell in meta.get("cells", [])]
    # cells that an interrupted run never reached have neither samples nor metadata
    if not metas or len(metas) != len(by_cell):
        raise StoredError(
            f"{path}: describes {len(metas)} cells and has samples of {len(by_cell)};"
            " run the benchmark again"
        )
    return meta, metas, [by_cell[index] for index in sorted(by_cell)]


@dataclass(frozen=True, slots=True)
class StoredTune:
    """A file of ``lmcache tune --json``: ``document`` is described in docs/json.md."""

    name: str
    document: Mapping[str, Any]


StoredResult = StoredRun | StoredTune


def read_stored(path: str | Path) -> StoredResult:
    """Reads a run file or a file of ``tune --json``, by its first bytes. Raises ``StoredError``."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PAR1" or path.suffix == ".parquet":
            return StoredRun.read(path)
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoredError(
            f"{path}: {error.strerror}; give run files of `lmcache bench` (.parquet)"
            " or files of `lmcache tune --json`"
        ) from error
    except ValueError as error:
        raise StoredError(
            f"{path}: neither a run file nor JSON; give run files of `lmcache bench` (.parquet)"
            " or files of `lmcache tune --json`"
        ) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema == "lmcache.bench/1":
        raise StoredError(f"{path}: bench JSON has no samples; give the .parquet run instead")
    wanted = {"source", "curves", "recommendation", "front"}
    if schema != TUNE_SCHEMA or not wanted <= document.keys():
        raise StoredError(
            f"{path}: its schema is {schema!r}, expected {TUNE_SCHEMA!r} or a run file (.parquet)"
        )
    return StoredTune(path.stem, document)


def run_summaries(
    samples_of: Sequence[Sequence[Sample]], metas: Sequence[CellMeta]
) -> list[CellSummary]:
    """Returns one summary per cell, against the cell of the same workload and context length
    without reuse, as ``bench`` itself has it."""
    base = {_scenario(meta): i for i, meta in reversed(list(enumerate(metas))) if _off(meta)}
    found = []
    for index, (samples, meta) in enumerate(zip(samples_of, metas, strict=True)):
        without = base.get(_scenario(meta), index)
        found.append(summarise(samples, samples_of[without] if without != index else None, meta))
    return found


def _off(meta: CellMeta) -> bool:
    return meta["reuse"] in BASES


def _scenario(meta: CellMeta) -> tuple[str, int | None]:
    return meta["workload"], meta.get("context_tokens")


def load(paths: str | Path | Iterable[str | Path]) -> Any:
    """Reads run files of ``lmcache bench`` into one pandas DataFrame of a row per request, for
    notebooks. Columns: ``run`` (the file's name), what the cell is (``engine``, ``model``,
    ``reuse``, ``chunk_tokens``, ``tiers.cpu`` in bytes and so on, see docs/json.md), and those of
    :func:`reports.sample.frame`. Raises ``StoredError`` or ``CheckRecordError`` for a file that is
    no run."""
    import pandas

    found = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        _, metas, samples_of = _read_cells(path)
        for cell, samples in zip(metas, samples_of, strict=True):
            meta = pandas.json_normalize({"run": Path(path).stem, **cell})
            rows = frame(samples).drop(columns="workload")
            found.append(meta.merge(rows, how="cross"))
    return pandas.concat(found, ignore_index=True) if found else pandas.DataFrame()

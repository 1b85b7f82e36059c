"""A run: one Parquet file with a row per sample, and everything that describes it inside."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from reports.sample import COLUMNS, TIERS, Sample

RUN_SCHEMA = "lmcache.run/1"
CHECK = "check"
"""The ``kind`` of what ``lmcache check`` keeps; a run's is ``bench``."""
META_KEY = b"lmcache"
_T = TypeVar("_T")


class RunFileError(Exception):
    """A run that can't be written or read; one line that names the file and what to do."""


def write_run(path: str | Path, samples: Sequence[Sample], meta: Mapping[str, Any]) -> None:
    """Writes the run and makes its folder. The file appears whole or not at all, and replaces one
    of the same name.

    ``meta`` is anything JSON can say; ``schema`` is added to it. Raises ``RunFileError`` if the
    file can't be written, ``TypeError`` or ``ValueError`` if ``meta`` is not JSON.
    """
    path = Path(path)
    text = json.dumps({**meta, "schema": RUN_SCHEMA}, ensure_ascii=False, allow_nan=False)
    pyarrow, parquet = _pyarrow()
    table = pyarrow.Table.from_pylist(
        [sample.to_row() for sample in samples],
        schema=_columns(pyarrow).with_metadata({META_KEY: text.encode()}),
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            parquet.write_table(table, file, write_page_checksum=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or error
        raise RunFileError(f"{path}: can't be written: {reason}; choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


class CheckRecordError(RunFileError):
    """What ``lmcache check`` measured, where a run of ``lmcache bench`` is wanted."""


def refuse_check_record(path: str | Path, meta: Mapping[str, Any]) -> None:
    """Raises ``CheckRecordError`` if ``meta`` is of a check, which has rounds of two sides, but
    nothing that describes its cells."""
    if meta.get("kind") == CHECK:
        raise CheckRecordError(
            f"{path}: the samples of a `lmcache check`, no run of `lmcache bench`; its verdict was"
            " printed (and is in --json, if asked for); give run files of bench"
            " (runs/bench-*.parquet)"
        )


def read_among(
    paths: Sequence[Path],
    read: Callable[[Path], _T],
    skip: Callable[[Path, Exception], str] = lambda path, error: "",
) -> tuple[list[_T], list[str]]:
    """Returns what ``read`` makes of each file, without the records of checks that lie among them
    and without those whose error ``skip`` has a reason to pass over; and a warning for each of
    those. Raises the first error if there is nothing else."""
    found: list[_T] = []
    warnings: list[str] = []
    first: Exception | None = None
    for path in paths:
        try:
            found.append(read(path))
        except Exception as error:
            why = skip(path, error)
            if isinstance(error, CheckRecordError):
                why = "the samples of a `lmcache check`, no run of `lmcache bench`"
            if not why:
                raise
            first = first or error
            warnings.append(f"{path} is skipped: {why}")
    if first is not None and not found:
        raise first
    return found, warnings


def read_run(path: str | Path) -> tuple[list[Sample], dict[str, Any]]:
    """Reads the samples, in the order they were written, and the metadata, ``schema`` included.

    Raises ``RunFileError`` for a file that is missing, damaged, no run, or of a newer schema.
    """
    path = Path(path)
    pyarrow, parquet = _pyarrow()
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PAR1":
                raise RunFileError(f"{path}: not a run file; `lmcache bench` writes them")
            # Without threads: a process that ends soon after Arrow's pool began to is at times
            # aborted by it, and its exit code is lost.
            stored = parquet.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
            meta = _checked_meta(path, stored.schema_arrow.metadata or {})
            rows = stored.read(use_threads=False).to_pylist()
            samples = [Sample.from_row(row) for row in rows]
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise RunFileError(f"{path}: {error.strerror}; give the path of a run file") from error
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        # Arrow's own messages are long and speak of its insides
        raise RunFileError(
            f"{path}: damaged or cut short ({type(error).__name__}); run the benchmark again"
        ) from error
    return samples, meta


def _checked_meta(path: Path, stored: Mapping[bytes, bytes]) -> dict[str, Any]:
    if META_KEY not in stored:
        raise RunFileError(
            f"{path}: a Parquet file, but not a run; `lmcache bench` writes run files"
        )
    meta = json.loads(stored[META_KEY])
    schema = meta.get("schema") if isinstance(meta, dict) else None
    name, _, version = str(schema).partition("/")
    if name != RUN_SCHEMA.partition("/")[0] or not version.isdecimal():
        raise RunFileError(
            f"{path}: its schema is {schema!r}, expected {RUN_SCHEMA!r}; not a run file"
        )
    if int(version) > int(RUN_SCHEMA.partition("/")[2]):
        raise RunFileError(
            f"{path}: written by a newer lmcache-bench ({schema}; this one reads {RUN_SCHEMA}); "
            "upgrade lmcache-bench"
        )
    return dict(meta)


def _columns(pyarrow: Any) -> Any:
    """Returns the schema of a run file, by the types of a sample's fields."""
    integer, number = pyarrow.int64(), pyarrow.float64()
    kinds = {int: integer, float: number, str: pyarrow.string()}
    kinds |= {tuple[float, ...]: pyarrow.list_(number)}
    kinds |= {tuple[int, ...]: pyarrow.list_(pyarrow.int32())}
    hints = get_type_hints(Sample) | {f"hit_{tier}": int | None for tier in TIERS}
    columns = []
    for name in COLUMNS:
        optional = NoneType in get_args(hints[name])
        kind = kinds[get_args(hints[name])[0] if optional else hints[name]]
        kind = pyarrow.int32() if name in ("cell", "repeat") else kind
        columns.append(pyarrow.field(name, kind, nullable=optional))
    return pyarrow.schema(columns)


def _pyarrow() -> tuple[Any, Any]:
    # imported on use, as it is slow to load; by name, as it has no types
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")

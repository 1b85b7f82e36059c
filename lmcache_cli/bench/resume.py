"""Finds, for ``bench --resume RUN``, what an interrupted run has, and what it lacks."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_core.plan import TierCounters
from lmcache_cli.bench.cells import Cell
from lmcache_cli.bench.measure import Measured
from lmcache_cli.errors import UserError
from reports.run_file import RunFileError, read_run, refuse_check_record
from reports.sample import Sample
from workloads.request import Request

INTERRUPTED = "interrupted: the tables show what was measured until then"


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A run file of an interrupted run. Cells that served every request of a repeat are kept; a
    repeat that was cut off is measured again from a cold start, since what its caches held is
    gone."""

    path: Path
    samples: Sequence[Sample]
    meta: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Interrupted:
        """Reads a run file. Raises ``UserError`` for a file that is no interrupted run of
        ``bench``."""
        try:
            samples, meta = read_run(path)
            refuse_check_record(path, meta)
        except RunFileError as error:
            raise UserError(f"--resume: {error}") from error
        if meta.get("complete"):
            raise UserError(f"--resume: {path} is complete; there is nothing to finish")
        if "progress" not in meta:
            raise UserError(
                f"--resume: {path} was not interrupted, or by an older lmcache-bench; run it again"
            )
        if meta["config"].get("cache_name"):
            raise UserError(
                f"--resume: {path} has --cache-name, and what its caches began with has changed"
                " since; run it again"
            )
        return cls(path, samples, meta)

    def flags(self) -> dict[str, Any]:
        """Returns the run's settings by flag, those left out that are none or hide a password."""
        hidden = {"remote"} if "***" in str(self.meta["config"].get("remote")) else set()
        return {
            name: value
            for name, value in self.meta["config"].items()
            if value is not None and name not in hidden
        }

    def refuse_other(self, now: Mapping[str, Any]) -> None:
        """Raises ``UserError`` naming everything in which ``config``, ``machine``, ``versions``,
        ``engine`` or ``requests`` (of ``now``, those that are known) differ."""
        then = {**self.meta, "requests": self.meta["progress"]["requests"]}
        found: list[str] = []
        plain = json.loads(json.dumps(now))  # as the file has it
        for name, value in plain.items():
            if name == "config":
                found += _differences(then[name], value, "--")
            elif name == "machine":
                keys = ("cpu", "cores", "gpus", "fingerprint")
                was, is_ = ({key: m.get(key) for key in keys} for m in (then[name], value))
                found += _differences(was, is_)
            elif name == "requests":
                if list(value) != list(then[name]):
                    found.append("the requests (has the corpus or the trace changed?)")
            else:
                found += _differences(then[name], value)
        if found:
            raise UserError(
                f"--resume: {self.path} differs in {'; '.join(found)}; make that as it was, or"
                " run it again without --resume"
            )

    def measured(self) -> Measured:
        """Returns what is kept: finished cells and repeats, and all that was counted of them."""
        progress = self.meta["progress"]
        finished = {(cell, repeat): spent for cell, repeat, spent in progress["finished"]}
        kept = [s for s in self.samples if (s.cell, s.repeat) in finished]
        return Measured(
            samples=kept,
            busy_s=finished,
            finished=set(finished),
            counters={
                int(cell): {name: _counters(values) for name, values in tiers.items()}
                for cell, tiers in progress["counters"].items()
            },
            chunk_bytes={int(cell): size for cell, size in progress["chunk_bytes"].items()},
            troubles={int(cell): found for cell, found in progress["troubles"].items()},
            warnings=[text for text in self.meta["warnings"] if text != INTERRUPTED],
            began_s=max((s.finished_s for s in self.samples), default=0.0),
        )

    def kept_text(self, kept: int) -> str:
        """Says what of the run's requests is kept."""
        again = len(self.samples) - kept
        text = f"{kept:,} requests of whole repeats are kept"
        if again:
            text += f"; {again:,} are served again, since what their caches held is gone"
        return text

    def groups(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Groups those of ``cells`` that were measured together: free memory, which settled that,
        may be another by now."""
        by_index = {cell.index: cell for cell in cells}
        found = [
            [by_index[index] for index in group if index in by_index]
            for group in self.meta["progress"]["groups"]
        ]
        return [group for group in found if group]


def progress_of(measured: Measured) -> dict[str, Any]:
    """Returns what resuming needs, for the run file of an interrupted run."""
    return {
        "requests": measured.requests,
        "groups": measured.groups,
        "finished": [
            [cell, repeat, measured.busy_s.get((cell, repeat), 0.0)]
            for cell, repeat in sorted(measured.finished)
        ],
        "counters": {
            str(cell): {
                name: {key: getattr(counters, key) for key in TierCounters.__slots__}
                for name, counters in tiers.items()
            }
            for cell, tiers in measured.counters.items()
        },
        "chunk_bytes": {str(cell): size for cell, size in measured.chunk_bytes.items()},
        "troubles": {
            str(cell): {name: dict(counts) for name, counts in found.items()}
            for cell, found in measured.troubles.items()
        },
    }


def missing(
    group: Sequence[Cell], repeats: range, finished: set[tuple[int, int]]
) -> list[tuple[list[Cell], range]]:
    """Returns cells and repeats that are still to be measured, repeats of the same cells
    together."""
    found: list[tuple[list[Cell], range]] = []
    for repeat in repeats:
        cells = [cell for cell in group if (cell.index, repeat) not in finished]
        if found and found[-1][0] == cells and found[-1][1].stop == repeat:
            found[-1] = cells, range(found[-1][1].start, repeat + 1)
        elif cells:
            found.append((cells, range(repeat, repeat + 1)))
    return found


def digest(requests: Sequence[Request]) -> str:
    """Returns a digest of what is served: 16 hex digits."""
    sha = hashlib.sha256()
    for request in requests:
        tokens = ",".join(map(str, request.token_ids))
        sha.update(f"{request.id} {request.arrival_s} {request.max_tokens} {tokens}\n".encode())
    return sha.hexdigest()[:16]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Keeps Ctrl-C and SIGTERM from ending what is within: a second one, while a run file is
    written, would lose what the first one kept."""
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _counters(values: Mapping[str, Any]) -> TierCounters:
    counters = TierCounters()
    for key, value in values.items():
        setattr(counters, key, value)
    return counters


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], dashes: str = "") -> list[str]:
    found = []
    for name in sorted(then.keys() | now.keys()):
        was, is_ = then.get(name), now.get(name)
        if was != is_:
            shown = dashes + (name.replace("_", "-") if dashes else name)
            found.append(f"{shown}: {_shown(was)} there, {_shown(is_)} here")
    return found


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)

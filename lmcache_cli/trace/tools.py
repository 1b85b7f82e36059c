"""Runs ``lmcache trace info``, ``convert`` and ``synth``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmcache_cli.errors import UserError
from lmcache_cli.output import write_output
from lmcache_cli.trace.prompt import load_tokenizer
from workloads import WORKLOADS, CorpusError, GeneratedCorpus, Settings, generate
from workloads.traces import (
    FEW_MALFORMED,
    Malformed,
    ReadOptions,
    Tokenize,
    Trace,
    TraceArrays,
    TraceError,
    load_arrays,
    open_trace,
)
from workloads.traces.summary import ceiling, summary
from workloads.traces.synthetic import like, of_requests
from workloads.traces.writing import WRITERS, write_trace

_CHUNK = 16


@dataclass(frozen=True, slots=True)
class TraceSource:
    """The flags that say how to read a trace."""

    path: Path
    format: str | None = None
    chunk_tokens: int | None = None
    unit_s: float | None = None
    tokenizer: str | None = None
    map: str | None = None

    def open(self) -> Trace:
        """Opens the trace with these flags. Raises ``TraceError``, ``UserError``."""
        if self.unit_s is not None and not 0 < self.unit_s < float("inf"):
            raise UserError(f"--time-unit: {self.unit_s} must be above 0 seconds")
        tokenize = None if self.tokenizer is None else _tokenizer(self.tokenizer)
        names = {}
        for pair in filter(None, (self.map or "").split(",")):
            name, equals, field = pair.partition("=")
            if not equals or not field.strip():
                raise UserError(f"--map: {pair!r} is no NAME=FIELD, as in time=ts,input=n_in")
            names[name.strip()] = field.strip()
        options = ReadOptions(self.chunk_tokens, self.unit_s, tokenize, names)
        return open_trace(self.path, self.format, options)


def show_info(source: TraceSource, json_file: str | None) -> None:
    """Prints a table about a trace, or writes JSON to a file or (``-``) stdout. Raises
    ``UserError``."""
    with _one_line():
        trace = source.open()
        found = summary(trace)
        if str(source.path) == "-":
            found["file"] = "stdin"
    if json_file is not None:
        text = json.dumps(found, indent=2) + "\n"
        write_output(json_file, text)
    else:
        Console().print(_table(found, trace.malformed))
    _tell(trace.malformed)


def convert_trace(source: TraceSource, out: Path, to: str) -> None:
    """Writes a trace to a new file in the format ``to``. Raises ``UserError``."""
    with _one_line():
        _check_target(out, to)
        trace = source.open()
        arrays = load_arrays(trace.requests())
        write_trace(out, arrays, to, f"converted from {trace.format}")
    _tell(trace.malformed)
    _written(out, arrays)


def synth_like(source: TraceSource, out: Path, to: str, requests: int | None, seed: int) -> None:
    """Writes a trace that shares as ``source`` does. Raises ``UserError``."""
    with _one_line():
        _check_target(out, to)
        trace = source.open()
        arrays = load_arrays(trace.requests())
        made = like(arrays, requests or len(arrays), seed)
        write_trace(out, made, to, f"synthetic, like a {trace.format} trace")
    _tell(trace.malformed)
    if trace.reader.shares:
        _say(f"ceiling by prefix: {ceiling(made):.1%}, of the original {ceiling(arrays):.1%}")
    _written(out, made)


def synth_workload(
    name: str | None,
    like_too: bool,
    out: Path,
    to: str,
    requests: int | None,
    rate: float | None,
    seed: int,
    chunk_tokens: int | None,
) -> None:
    """Writes the trace that a workload would leave. Raises ``UserError``."""
    from lmcache_cli.engines.simulated import encode_words

    if name is None or like_too:
        raise UserError("give either --like FILE or --workload NAME")
    if name not in WORKLOADS:
        raise UserError(f"--workload: {name!r} is not known; use one of {', '.join(WORKLOADS)}")
    with _one_line():
        _check_target(out, to)
        try:
            settings = Settings(requests=requests, rate=1.0 if rate is None else rate, seed=seed)
            made = of_requests(
                generate(name, settings, GeneratedCorpus(seed), encode_words),
                chunk_tokens or _CHUNK,
            )
        except CorpusError as error:
            raise UserError(str(error)) from error
        write_trace(out, made, to, f"synthetic, workload {name}")
    _written(out, made)


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except TraceError as error:
        raise UserError(str(error)) from error
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _check_target(out: Path, to: str) -> None:
    """Checks the file to write before the work, not after it. Raises ``TraceError``."""
    if to not in WRITERS:
        raise TraceError(f"--to: {to!r} can't be written; use one of {', '.join(WRITERS)}")
    if str(out) == "-":
        return
    if out.exists():
        raise TraceError(f"{out} is there already; remove it, or name another")
    if not out.absolute().parent.is_dir():
        raise TraceError(f"{out.absolute().parent} is no folder; make it first")


def _tokenizer(name: str) -> Tokenize:
    loaded = load_tokenizer(name)

    def tokenize(prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return list(loaded(prompt)["input_ids"])
        ids = loaded.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        return list(ids)

    return tokenize


def _table(found: dict[str, Any], malformed: Malformed) -> Table:
    title = found["file"]
    if malformed.share > FEW_MALFORMED:
        title = f"{title}: {malformed.told()}, and what follows is of the others"
    table = Table(title=title, show_header=False, title_justify="left")
    rate, every = found["arrival_rate_per_s"], found["chunk_tokens"]
    rows = {
        "format": f"{found['format']}: {found['holds']}",
        "requests": f"{found['requests']:,}",
        "sessions": f"{found['sessions']:,}" if found["sessions"] else "not told",
        "duration": f"{found['duration_s']:,.1f} s",
        "arrivals": "no times" if rate is None else f"{rate:,.3f}/s",
        "input tokens": f"{found['input_tokens']:,}",
        "input length": _lengths(found["input_length"]),
        "output tokens": f"{found['output_tokens']:,}",
        "output length": _lengths(found["output_length"]),
        "chunks": "not told: lengths and arrivals only",
    }
    if found["chunks"] is not None:
        count, unique = found["chunks"], found["unique_chunks"]
        rows |= {
            "chunks": f"{count:,} of {every} tokens, {unique:,} different",
            "ceiling, by prefix": f"{found['ceiling_prefix']:.1%} of input tokens",
            "ceiling, any position": "not told by this format",
        }
    if found["ceiling_any_position"] is not None:
        rows["ceiling, any position"] = f"{found['ceiling_any_position']:.1%} of input tokens"
    if found["guess"]:
        rows["guessed"] = found["guess"]
    rows["malformed lines"] = f"{found['malformed']['count']:,}"
    for name, shown in rows.items():
        table.add_row(name, shown)
    return table


def _lengths(of: dict[str, float]) -> str:
    return "   ".join(f"{name} {of[name]:,.0f}" for name in ("p50", "p90", "p99", "max"))


def _tell(malformed: Malformed) -> None:
    if malformed.count:
        for example in malformed.examples:
            _say(f"malformed: {example}")
        more = malformed.count - len(malformed.examples)
        if more:
            _say(f"malformed: and {more:,} more")


def _written(out: Path, arrays: TraceArrays) -> None:
    _say(f"{out}: {len(arrays):,} requests")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


_MOST_RATE = 1000


def odd_lengths(arrays: TraceArrays) -> list[str]:
    """Returns what is odd about a trace's lengths and times, one line each."""
    count, found = len(arrays), []
    empty = int((arrays.input_tokens <= 0).sum())
    if empty:
        found.append(f"{empty} of {count} prompts have no token; they count as one")
    silent = int((arrays.output_tokens <= 0).sum())
    if silent:
        found.append(
            f"{silent} of {count} requests have no output length: their answers count as one"
            " token, so decoding costs nothing and the load is understated"
        )
    seconds = float(arrays.arrival_s[-1] - arrays.arrival_s[0])
    if count > 1 and seconds <= 0:
        found.append("all requests arrive at once: the trace has no times, or one for all")
    elif count > 100 and count / seconds > _MOST_RATE:
        found.append(
            f"{count / seconds:,.0f} requests a second: are its times in another unit?"
            " --time-unit SECONDS says which (0.001 for milliseconds)"
        )
    return found

"""A scenario's requests in an engine's own tokens, from a workload, a data set or a trace."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmcache_cli.bench.cells import Scenario
from lmcache_cli.engines.engine import Engine
from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.options.bench import BenchOptions
from lmcache_cli.output import Say
from workloads import Corpus, CorpusError, Replay, Request, Settings, answering, generate, replay
from workloads.answering import Example
from workloads.tokens import Encode
from workloads.traces import ReadOptions, TraceError, open_trace

_HEADING = re.compile(r"^Passage \d+:\s*$", re.MULTILINE)  # as LongBench joins its passages


def read_dataset(path: Path, most: int | None = None) -> list[Example]:
    """Reads the first ``most`` examples of a JSON or JSONL file.

    It knows three forms by their fields: ``question``, ``ctxs`` (``title``, ``text``) and
    ``answers``; MuSiQue's own ``question``, ``paragraphs`` (``title``, ``paragraph_text``),
    ``answer`` and ``answer_aliases``; LongBench's ``input``, ``context`` and ``answers``. Raises
    ``MissingError`` without the library, ``UserError`` for a file that it can't read.
    """
    if not path.is_file():
        raise UserError(f"--dataset: {path} is no file; give one of JSON or JSON lines")
    try:
        import datasets
    except ImportError as error:
        raise MissingError(
            f"--dataset needs the package {error.name}; run: pip install 'lmcache-bench[datasets]'"
        ) from error
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    with TemporaryDirectory(prefix="lmcache-dataset-") as scratch:
        try:
            table = datasets.Dataset.from_json(str(path), cache_dir=scratch)
        except (datasets.exceptions.DatasetsError, ValueError, OSError) as error:
            raise UserError(
                f"--dataset: {path} is not JSON of one object per example, in lines or in a list"
            ) from error
        rows = table.select(range(min(len(table), most or len(table)))).to_list()
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(_example(row))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"--dataset: example {number} of {path} lacks {error}; it needs question, ctxs"
                " (title, text) and answers, or the fields of MuSiQue or LongBench"
            ) from error
    return found


def _example(row: Mapping[str, Any]) -> Example:
    if row.get("context") is not None and row.get("input") is not None:
        cut = _HEADING.split(row["context"]) if _HEADING.search(row["context"]) else None
        texts = cut or row["context"].split("\n\n")
        passages = tuple(text.strip() for text in texts if text.strip())
        return Example(row["input"].strip(), passages, _texts(row["answers"]))
    if row.get("paragraphs") is not None:
        passages = tuple(_passage(p["title"], p["paragraph_text"]) for p in row["paragraphs"])
        answers = _texts([row["answer"], *(row.get("answer_aliases") or [])])
        return Example(row["question"].strip(), passages, answers)
    passages = tuple(_passage(p.get("title"), p["text"]) for p in row["ctxs"])
    answers = _texts(row["answers"])
    return Example(row["question"].strip(), passages, answers)


def _passage(title: str | None, text: str) -> str:
    return f"{title}\n{text}" if title else text


def _texts(answers: Any) -> tuple[str, ...]:
    # NaturalQuestions and its like wrap lists in lists; one answer may stand alone.
    if isinstance(answers, str):
        return (answers,)
    return tuple(text for answer in answers for text in _texts(answer))


TRACE = "trace"


def check_trace_flags(options: BenchOptions) -> None:
    """Raises ``UserError`` if the workload ``trace`` and ``--trace`` don't go together, or other
    workloads or a rate go with them."""
    if (TRACE in options.workloads) != (options.trace is not None):
        raise UserError(
            "workload trace and --trace FILE go together: lmcache bench trace --trace FILE"
        )
    if options.trace is None:
        if options.speed_up != 1 or options.scale != 1 or options.trace_format is not None:
            raise UserError("--speed-up, --scale and --trace-format are the workload trace's")
        return
    if len(set(options.workloads)) > 1:
        raise UserError("workload trace has arrivals of its own; bench other workloads apart")
    if options.rate is not None:
        raise UserError("--rate: a trace has its own arrivals; use --speed-up, or --concurrency")


def trace_scenario(options: BenchOptions) -> Scenario:
    """Returns the scenario of the trace's requests. Raises ``UserError`` if it can't be read at
    all; lines are looked at later."""
    assert options.trace is not None
    try:
        replay = Replay(
            options.trace,
            options.trace_format,
            options.requests,
            options.speed_up,
            options.scale,
            options.seed,
            options.trace_chunk_tokens,
        )
        read = ReadOptions(chunk_tokens=replay.chunk_tokens)
        open_trace(replay.path, replay.format, read)
        settings = Settings(seed=options.seed, requests=options.requests)
    except TraceError as error:
        raise UserError(f"--trace: {error}") from error
    except ValueError as error:
        raise UserError(f"--{error}") from error
    return Scenario(TRACE, settings, replay=replay)


def make_requests(
    scenario: Scenario, corpus: Corpus, encode: Encode, bos: int | None, warn: Say
) -> list[Request]:
    """Generates requests, or replays them from a trace, in the order of sending. Raises
    ``UserError``."""
    try:
        if scenario.replay is not None:
            return replay(scenario.replay, encode, bos, warn)
        return generate(scenario.workload, scenario.settings, corpus, encode, bos)
    except (CorpusError, ValueError) as error:
        raise UserError(f"{scenario.workload}: {error}") from error


def engine_requests(
    scenario: Scenario, corpus: Corpus, engine: Engine, warn: Say, note: Say
) -> list[Request]:
    """Makes the requests for ``engine``: generated, replayed, or a data set's questions, cut to its
    context. Raises ``UserError``, too if one does not fit the model's context."""
    if scenario.examples:
        requests = _asked(scenario, engine, note)
    else:
        requests = make_requests(scenario, corpus, engine.encode, engine.bos, warn)
    refuse_too_long(engine, requests)
    return requests


def _asked(scenario: Scenario, engine: Engine, note: Say) -> list[Request]:
    settings = scenario.settings
    room = engine.max_context - settings.output_tokens
    settings = replace(settings, context_tokens=max(2, min(settings.context_tokens, room)))
    try:
        requests, cut = answering(
            scenario.examples, settings, engine.encode, engine.bos, engine.frame
        )
    except (CorpusError, ValueError) as error:
        raise UserError(f"{scenario.workload}: {error}") from error
    note(
        f"prompts of at most {settings.context_tokens} tokens have {cut.kept} of {cut.total}"
        f" passages; in {cut.answerable} of {cut.prompts} of them an answer can be read"
    )
    return requests


def refuse_too_long(engine: Engine, requests: Sequence[Request]) -> None:
    """Raises ``UserError`` for a request beyond the model's context."""
    longest = max(requests, key=lambda r: len(r.token_ids) + r.max_tokens)
    need = len(longest.token_ids) + longest.max_tokens
    if need > engine.max_context:
        raise UserError(
            f"request {longest.id} needs {need} tokens (prompt and output), but {engine.model}'s"
            f" context is {engine.max_context}; lower --context-tokens or --scale, or use"
            " another --model"
        )

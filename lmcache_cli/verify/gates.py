"""What the commands of ``lmcache verify`` have in common: gates, prompts that fit, an end."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmcache_cli.errors import EXIT_FAILED, EXIT_INCONCLUSIVE, UserError
from lmcache_cli.output import columns, write_output
from workloads import GeneratedCorpus, Request, Settings, generate

if TYPE_CHECKING:
    from lmcache_cli.engines.transformers.engine import TransformersEngine

QUESTION_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Gate:
    """One thing that must hold, and what was found; ``unsure`` if that does not tell."""

    name: str
    passed: bool
    found: str
    unsure: bool = False


def check_fits(engine: TransformersEngine, flag: str, length: int, need: int) -> None:
    """Raises ``UserError`` naming the flag, if the model's context is shorter than ``need``."""
    if need > engine.max_context:
        raise UserError(
            f"{flag}: {length} needs {need} tokens, but {engine.model}'s context is"
            f" {engine.max_context}"
        )


def long_contexts(
    engine: TransformersEngine, length: int, documents: int, output_tokens: int, seed: int
) -> list[Request]:
    """Makes a request with a question of :data:`QUESTION_TOKENS` for each of ``documents``
    documents of ``length`` tokens. Raises ``UserError`` naming ``--context-tokens``, if they do not
    fit."""
    settings = Settings(
        context_tokens=length,
        documents=documents,
        questions=1,
        question_tokens=QUESTION_TOKENS,
        output_tokens=output_tokens,
        seed=seed,
    )
    corpus = GeneratedCorpus(seed)
    requests = generate("long-context", settings, corpus, engine.encode, engine.bos)
    for request in requests:
        need = len(request.token_ids) + request.max_tokens
        check_fits(engine, "--context-tokens", length, need)
    return requests


def gate_table(title: str, gates: Iterable[Mapping[str, Any]]) -> Table:
    """Makes a table of gates given as in JSON: ``name``, ``passed``, ``found``."""
    table = columns("gate", "", "found", left=("gate", "", "found"), title=title)
    for gate in gates:
        word = "ok" if gate["passed"] else "unsure" if gate.get("unsure") else "FAILED"
        table.add_row(gate["name"], word, gate["found"])
    return table


def conclude(
    document: Mapping[str, Any], tables: Iterable[Table | Text], json_file: str | None
) -> int:
    """Writes the JSON, prints tables and words unless stdout is taken, and returns the exit code of
    ``document["passed"]``, or of a verdict ``inconclusive``."""
    if json_file is not None:
        write_output(json_file, json.dumps(document, indent=2) + "\n")
    if json_file != "-":
        grid = Table.grid(padding=(0, 0, 1, 0))
        for table in tables:
            grid.add_row(table)
        Console().print(grid)
    if document.get("verdict") == "inconclusive":
        return EXIT_INCONCLUSIVE
    return 0 if document["passed"] else EXIT_FAILED

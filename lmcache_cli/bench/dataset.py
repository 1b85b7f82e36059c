"""``--dataset FILE``: questions with passages and answers, through the library ``datasets``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmcache_cli.errors import MissingError, UserError
from workloads.answering import Example

_HEADING = re.compile(r"^Passage \d+:\s*$", re.MULTILINE)  # as LongBench joins its passages


def read_dataset(path: Path, most: int | None = None) -> list[Example]:
    """The first ``most`` examples of a JSON or JSONL file.

    Three forms, told apart by their fields: ``question``, ``ctxs`` (``title``, ``text``) and
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

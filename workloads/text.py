"""Holds the corpora that words come from: the protocol, and one corpus read from files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

SUFFIXES = (".txt", ".md", ".rst", ".jsonl")
# Whole paragraphs up to this many characters make a passage, about 300 tokens of English.
_PASSAGE_CHARS = 1500
_PARAGRAPH_GAP = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")


class CorpusError(Exception):
    """A text that can't be used, or is too short; one line that says where and what to do."""


class Corpus(Protocol):
    """An ordered collection of passages of text, the same at every reading."""

    @property
    def name(self) -> str:
        """Returns what messages call the corpus."""

    def passages(self) -> Iterator[str]:
        """Yields all passages from the first on; may never end."""


class FolderCorpus:
    """The user's own text: a file, or all files below a folder in the order of their paths.

    Reads UTF-8 ``.txt``, ``.md``, ``.rst``, and ``.jsonl`` (one object with ``"text"`` per line).
    Hidden files and folders are passed over. Passages are runs of paragraphs of one text, held in
    memory. Raises ``CorpusError`` for what can't be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._passages = [
            passage
            for file in _files(Path(path))
            for text in _texts(file)
            for passage in _cut(text)
        ]

    def __len__(self) -> int:
        return len(self._passages)

    def passages(self) -> Iterator[str]:
        """Yields all passages, file by file."""
        return iter(self._passages)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
            and file.is_file()
        ]
        if not found:
            raise CorpusError(f"{path}: no {' '.join(SUFFIXES)} file below it; add some text")
        return sorted(found, key=lambda file: file.relative_to(path).parts)
    if not path.exists():
        raise CorpusError(f"{path}: does not exist; name a file or folder of text")
    if path.suffix.lower() not in SUFFIXES:
        raise CorpusError(f"{path}: not a {' '.join(SUFFIXES)} file; convert or rename it")
    return [path]


def _texts(file: Path) -> list[str]:
    """Reads the file's documents, none of them blank."""
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise CorpusError(f"{file}: {error.strerror}; make it readable or remove it") from error
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{file}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; convert or remove the file"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise CorpusError(f"{file}:{line}: a zero byte, so not text; remove the file")
    if not text.strip():
        raise CorpusError(f"{file}:1: no text in it; add some or remove the file")
    if file.suffix.lower() == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        return [_json_text(file, number, line) for number, line in lines if line.strip()]
    return [text]


def _json_text(file: Path, number: int, line: str) -> str:
    where, need = f"{file}:{number}:", 'write {"text": "..."} or remove the line'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{where} not JSON ({error.msg}, column {error.colno}); {need}"
        ) from error
    except (RecursionError, ValueError) as error:
        raise CorpusError(f"{where} not JSON that can be read; {need}") from error
    text = row.get("text") if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(f'{where} no object with a "text" that has words; {need}')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(f"{where} half a surrogate pair in its text; {need}") from error
    return text


def _cut(text: str) -> Iterator[str]:
    """Cuts a text into passages of whole paragraphs. A paragraph that alone is too long is cut
    between sentences or lines, and between words where there are none."""
    passage = ""
    for paragraph in _PARAGRAPH_GAP.split(text):
        for piece in _short_enough(paragraph.strip("\n").rstrip()):
            if passage and len(passage) + len(piece) + 2 > _PASSAGE_CHARS:
                yield passage
                passage = ""
            passage = f"{passage}\n\n{piece}" if passage else piece
    if passage:
        yield passage


def _short_enough(paragraph: str) -> Iterator[str]:
    start = 0
    while len(paragraph) - start > _PASSAGE_CHARS:
        head = paragraph[start : start + _PASSAGE_CHARS]
        ends = [match.start() for match in _SENTENCE_END.finditer(head) if match.start()]
        cut = ends[-1] if ends else head.rfind(" ")
        start += cut if cut > 0 else _PASSAGE_CHARS
        piece = head[:cut].rstrip() if cut > 0 else head
        if piece:
            yield piece
        while paragraph[start : start + 1].isspace():
            start += 1
    if start < len(paragraph):
        yield paragraph[start:]

"""Reads the lines of a trace file, plain or compressed, and counts those that can't be used."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

Record: TypeAlias = dict[str, Any]
"""A JSON object of a trace file."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_OTHERS = {
    codecs.BOM_UTF16_LE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 {path} > OUT",
    codecs.BOM_UTF16_BE: "UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8 {path} > OUT",
    b"PK\x03\x04": "a zip archive; unpack it first",
    b"\xfd7zX": "compressed by xz; unpack it first",
    b"BZh": "compressed by bzip2; unpack it first",
}
_GAP = re.compile(r"[\s,]*")
_PIECE = 1 << 20
_KEPT = 10
_LARGEST = 1 << 28
FEW_MALFORMED = 0.01
"""The share of malformed lines below which a heading doesn't speak of them."""


class TraceError(ValueError):
    """A trace that can't be read; one line that says which, why, and what to do."""


@dataclass(slots=True)
class Malformed:
    """How many lines could not be used, and the first few of them as ``file:line: reason``; and how
    many were ``good``."""

    count: int = 0
    good: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Returns the share of all lines that could not be used."""
        return self.count / (self.count + self.good) if self.count else 0.0

    def told(self) -> str:
        """Says how many of how many lines could not be used."""
        return f"{self.count:,} of {self.count + self.good:,} lines are malformed"

    def note(self, where: str, reason: object) -> None:
        """Counts one line that could not be used, and keeps the first few as examples."""
        self.count += 1
        if len(self.examples) < _KEPT:
            self.examples.append(f"{where}: {reason}")


def opened(path: Path) -> io.BufferedReader | gzip.GzipFile:
    """Opens a file's bytes; gzip and Zstandard are recognised by their first bytes and
    decompressed. Raises ``TraceError`` if it can't be opened."""
    try:
        with path.open("rb") as raw:
            magic = raw.read(4)
        if magic.startswith(_GZIP):
            return gzip.GzipFile(path, "rb")
        for start, what in _OTHERS.items():
            if magic.startswith(start):
                raise TraceError(f"{path}: {what.format(path=path)}")
        if magic == _ZSTD:
            import pyarrow as pa

            stream = pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")
            return io.BufferedReader(cast(io.RawIOBase, stream), _PIECE)
        return io.BufferedReader(io.FileIO(path), _PIECE)
    except OSError as error:
        reason = error.strerror or error
        raise TraceError(f"{path}: {reason}; name a readable trace") from error


def about_lines(path: Path) -> int | None:
    """Returns about how many lines a file has, by those at its beginning; None of a folder or a
    compressed file, and where there is none."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 20)
    except OSError:
        return None
    lines = head.count(b"\n")
    if not lines or head.startswith((_GZIP, _ZSTD)):
        return None
    return max(lines, round(path.stat().st_size * lines / len(head)))


def _is_cut(text: str, error: Exception) -> bool:
    """Returns whether JSON is whole up to the end of ``text``, and goes on."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    word = len("-Infinity")  # or an escape that is not over
    return error.msg.startswith("Unterminated string") or len(text) - error.pos < word


class Lines:
    """The lines of one file, from the first, as often as they are asked for; empty ones are left
    out. A JSON list counts as one object a line, however it is broken. Nothing but the line at hand
    is in memory. What can't be used goes into ``malformed``."""

    def __init__(self, path: Path, malformed: Malformed) -> None:
        self.path = path
        self.malformed = malformed

    def bad(self, number: int, reason: object) -> None:
        """Counts line ``number`` (from 1) as malformed."""
        self.malformed.note(f"{self.path}:{number}", reason)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        """Yields (number, text without its end) of each line. A file that breaks off ends there,
        and is noted."""
        number = 0
        with opened(self.path) as file:
            try:
                start = file.peek(_KEPT).removeprefix(codecs.BOM_UTF8)
                if start.lstrip().startswith(b"["):
                    yield from self._elements(file)
                    return
                for raw in file:
                    number += 1
                    try:
                        text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                    except UnicodeDecodeError:
                        self.bad(number, "not UTF-8")
                        continue
                    if text:
                        yield number, text
            except (OSError, EOFError, zlib.error) as error:
                self.bad(number + 1, f"the compressed file breaks off or is damaged ({error})")

    def _elements(self, file: io.BufferedIOBase) -> Iterator[tuple[int, str]]:
        """Yields (number, text) of each element of the JSON list that all of the file is. Raises
        ``TraceError`` where more of it than a last, cut element can't be read: how many requests
        that is, nobody knows."""
        decode = json.JSONDecoder().raw_decode
        utf8 = codecs.getincrementaldecoder("utf-8-sig")("replace")
        text = utf8.decode(file.read(_PIECE)).lstrip()
        number, at = 0, 1
        while True:
            gap = _GAP.match(text, at)
            start = gap.end() if gap else at
            if text.startswith("]", start):
                if behind := (text[start + 1 :] + utf8.decode(file.read(_PIECE))).strip():
                    raise TraceError(
                        f"{self.path}: behind its list of {number} elements is {behind[:40]!r};"
                        " write one list, or an object a line"
                    )
                return
            try:
                _, at = decode(text, start)
            except (ValueError, RecursionError) as error:
                more = file.read(max(_PIECE, len(text)))
                if not more or len(text) > _LARGEST:
                    if number and not more and _is_cut(text, error):
                        self.bad(number + 1, "the list breaks off")
                        return
                    # without its place, which is one in the piece that was read
                    what = getattr(error, "msg", error)
                    raise TraceError(
                        f"{self.path}: element {number + 1} of its list is no JSON ({what}); mend"
                        " it, or write an object a line"
                    ) from error
                text, at = text[start:] + utf8.decode(more), 0
                continue
            number += 1
            yield number, text[start:at]

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yields (number, object) of every line that is a JSON object."""
        for number, text in self:
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                self.bad(number, f"not JSON ({error})")
                continue
            if isinstance(record, dict):
                yield number, record
            else:
                self.bad(number, f"a JSON {type(record).__name__}, not an object")

    def whole(self) -> Record | None:
        """Returns the object that all of the file is, over several lines; None if it is none, or
        larger than 256 MiB."""
        with opened(self.path) as file:
            try:
                start = file.read(1)
                if start != b"{":
                    return None
                text = start + file.read(_LARGEST)
                record = json.loads(text) if len(text) <= _LARGEST else None
            except (OSError, EOFError, zlib.error, ValueError, RecursionError):
                return None
        return record if isinstance(record, dict) else None

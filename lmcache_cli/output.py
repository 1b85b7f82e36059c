"""Writes the files of ``--json FILE`` and flags like it, and comments; makes plain tables."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rich.table import Table

from lmcache_cli.errors import UserError
from reports.units import seconds_text

Say = Callable[[str], None]
"""A function that tells the user something that is neither a result nor an error."""
_T = TypeVar("_T")
_SAY_S, _LOOK = 1.0, 64


def counted(items: Iterable[_T], say: Say, what: str, total: int | None = None) -> Iterator[_T]:
    """Yields the items and tells about each second how many came, and what is left of about
    ``total``."""
    began = told = time.monotonic()
    for count, item in enumerate(items):
        if count and count % _LOOK == 0 and (now := time.monotonic()) - told >= _SAY_S:
            told, left = now, ""
            if total is not None:
                rest = max(0.0, (now - began) / count * (total - count))
                left = f" of {total:,}, {seconds_text(rest)} left"
            say(f"{what}: {count:,}{left}")
        yield item


def write_output(target: str, text: str, flag: str = "--json", parents: bool = False) -> None:
    """Writes ``text`` to a file, or to stdout for ``-``. A regular file appears whole or not at
    all; with ``parents`` its folder is made too. Raises ``UserError`` naming the flag."""
    if target == "-":
        sys.stdout.write(text)
        return
    path = Path(target)
    # a pipe or a terminal is written to; a link's target is what is replaced
    whole = path.resolve() if path.is_file() or not path.exists() else None
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        if whole is None:
            path.write_text(text, encoding="utf-8")
            return
        temporary = whole.with_name(f".{whole.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8")
            if whole.exists():
                temporary.chmod(whole.stat().st_mode & 0o777)
            os.replace(temporary, whole)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _refusal(flag, target, error.strerror or str(error)) from error


def comment_on_pull_request(markdown: str) -> None:
    """Writes a comment for the pull request of the current branch, or replaces the last one that
    the same user wrote there. Where gh can't, it says why on stderr, and a warning follows."""
    # In an action on a pull request this is refs/pull/NUMBER/merge, and no branch is checked out.
    parts = os.environ.get("GITHUB_REF", "").split("/")
    number = parts[2:3] if parts[:2] == ["refs", "pull"] else []
    command = ["gh", "pr", "comment", *number, "--edit-last", "--create-if-none"]
    command += ["--body-file", "-"]
    try:
        # gh prints the comment's address; our stdout may be the verdict's JSON.
        subprocess.run(command, input=markdown, stdout=2, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        print(
            "lmcache: warning: --comment: could not comment on the pull request (one from a fork"
            " has a read-only token); the verdict stands",
            file=sys.stderr,
        )


def check_output(target: str | None, flag: str = "--json") -> None:
    """Raises ``UserError``, before long work, for a file that could not be written after it."""
    if target is None or target == "-":
        return
    path = Path(target)
    reason = ""
    if path.is_dir():
        reason = os.strerror(errno.EISDIR)
    elif not path.absolute().parent.is_dir():
        reason = os.strerror(errno.ENOENT)
    elif not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        reason = os.strerror(errno.EACCES)
    if reason:
        raise _refusal(flag, target, reason)


def _refusal(flag: str, target: str, reason: str) -> UserError:
    return UserError(f"{flag}: {target} can't be written: {reason}; name another file")


def columns(*names: str, left: tuple[str, ...] = (), title: str | None = None) -> Table:
    """Makes a table without a frame; ``left`` are the columns of words."""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in names:
        table.add_column(name, justify="left" if name in left else "right")
    return table

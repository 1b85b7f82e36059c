"""Where ``--json FILE`` and its like go."""

from __future__ import annotations

import sys
from pathlib import Path

from lmcache_cli.errors import UserError


def write_output(target: str, text: str, flag: str = "--json") -> None:
    """To a file, or to stdout for ``-``. Raises ``UserError`` naming the flag."""
    if target == "-":
        sys.stdout.write(text)
        return
    try:
        Path(target).write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"{flag}: {target} can't be written: {reason}; name another file"
        ) from error

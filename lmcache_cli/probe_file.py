"""``probe.json``: what ``lmcache probe`` saves, and engines and ``tune`` read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmcache_cli.errors import UserError

SCHEMA = "lmcache.probe/1"


def load_probe(path: Path) -> dict[str, Any]:
    """Reads a probe file. Raises ``UserError`` for one that can't be read or is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise UserError(f"--probe: {path} is {document['schema']}, not {SCHEMA}")
    except OSError as error:
        raise UserError(f"--probe: {path} can't be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--probe: {path} is no probe file; make one: lmcache probe") from error
    return document

"""The hits that our connector inside vLLM records."""

from __future__ import annotations

import json
import time
from pathlib import Path

from lmcache_cli.engines.openai import REQUEST_NAME


class HitRecord:
    """What our connector writes: one line of JSON per request that ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restart()

    def restart(self) -> None:
        """Removes the file: a connector makes it anew."""
        self.path.unlink(missing_ok=True)
        self._hits: dict[str, dict[str, int]] = {}
        self._read = 0

    def find(self, name: str, limit_s: float) -> dict[str, int] | None:
        """Prompt tokens by tier of the request that was sent under ``name``; None if that is not
        written within ``limit_s``. vLLM puts the name into an id of its own."""
        end = time.monotonic() + limit_s
        while name not in self._hits and time.monotonic() < end:
            if not self._advance():
                time.sleep(0.005)
        return self._hits.pop(name, None)

    def _advance(self) -> bool:
        """Reads whole lines that are new; False if there are none."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            if found := REQUEST_NAME.search(str(entry.get("id", ""))):
                self._hits[found.group()] = dict(entry["hits"])
        return bool(whole)

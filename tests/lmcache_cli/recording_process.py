"""`lmcache trace record` as a process, and the clients that talk through it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from urllib.parse import urlsplit

from tests.cache_core.servers import eventually
from tests.lmcache_cli.command_line import COMMAND, ROOT, lmcache

JSON = {"Content-Type": "application/json"}


def command(out: Path, url: str, *options: str) -> list[str]:
    record = [*COMMAND, "trace", "record", str(out), "--url", url]
    return [*record, *(() if "--listen" in options else ("--listen", "127.0.0.1:0")), *options]


def run(out: Path, url: str, *options: str) -> CompletedProcess[str]:
    """For starts that fail."""
    done = lmcache(*command(out, url, *options)[len(COMMAND) :], cwd=ROOT)
    assert "Traceback" not in done.stderr
    return done


class Recording:
    """One that has started; its log is what it said on stderr."""

    def __init__(self, out: Path, url: str, *options: str) -> None:
        self.out = out
        self._process = subprocess.Popen(
            command(out, url, *options),
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert self._process.stderr is not None
        self.said = ""
        for line in self._process.stderr:
            self.said += line
            if found := re.match(r"recording (http://\S+) ->", line):
                self.url = found[1]
                return
        raise AssertionError(self.said)

    def lines(self) -> list[dict[str, Any]]:
        whole, _, _ = self.out.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()[1:]]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """The lines in the order of arrival, once there are ``count``."""
        eventually(lambda: len(self.lines()) >= count)
        return sorted(self.lines(), key=lambda line: float(line["id"]))

    def limit(self, size: int) -> None:
        """Its files may not grow beyond ``size`` bytes, as if the disk were full."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, size))

    def interrupt(self, number: int) -> None:
        self._process.send_signal(number)

    def end(self, number: int | None = signal.SIGINT, code: int = 0) -> str:
        """Ends it (or waits until it has ended by itself) and returns the rest of its log."""
        if number is not None:
            self._process.send_signal(number)
        _, log = self._process.communicate(timeout=120)
        assert self._process.returncode == code, log
        assert "Traceback" not in log
        return log

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def recording(out: Path, url: str, *options: str) -> Iterator[Recording]:
    started = Recording(out, url, *options)
    try:
        yield started
    finally:
        started.kill()


def connect(url: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)


def ask(
    url: str, path: str, body: object, method: str = "POST", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (lower case) and body. Keyword names become headers: ``X_Session_Id``."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(connect(url)) as connection:
        connection.request(method, path, data, named)
        answer = connection.getresponse()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, names, answer.read()


def events(data: bytes) -> list[dict[str, Any]]:
    found = [line[6:] for line in data.splitlines() if line.startswith(b"data: ")]
    assert found[-1] == b"[DONE]"
    return [json.loads(event) for event in found[:-1]]

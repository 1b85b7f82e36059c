"""Real servers for tests: on the loopback interface, on free ports, ended by their process."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_START_S = 20.0
_PROVIDER = """
import sys
import threading
from mooncake.store import MooncakeDistributedStore
store = MooncakeDistributedStore()
status = store.setup("127.0.0.1", "P2PHANDSHAKE", 64 << 20, 16 << 20, "tcp", "", sys.argv[1])
print("ready" if status == 0 else f"error {status}", flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisProcess:
    """A redis-server without persistence, which can be killed and started again."""

    def __init__(self, folder: Path, *options: str, tls: bool = False) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("redis-server is not installed (apt-get install redis-server)")
        self.port = free_port()
        port = ("--port", "0", "--tls-port") if tls else ("--port",)
        self._command = [binary, *port, str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self._command += ["--appendonly", "no", "--dir", str(folder), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def kill(self) -> None:
        """SIGKILL: connections die, nothing is written."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, paused: bool) -> None:
        """SIGSTOP or SIGCONT: the port answers, the server does not."""
        assert self._process is not None
        self._process.send_signal(19 if paused else 18)


class MooncakeProcess:
    """A mooncake_master and a process that gives 64 MiB of memory."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.find_spec("mooncake")
        if spec is None or not spec.submodule_search_locations:
            pytest.skip("mooncake-transfer-engine-non-cuda is not installed")
        try:
            import mooncake.store  # noqa: F401
        except ImportError as error:
            pytest.skip(f"Mooncake's client can't be loaded: {error}")
        self.port = free_port()
        self._log = folder / "mooncake.log"
        self._command = [
            str(Path(spec.submodule_search_locations[0]) / "mooncake_master"),
            "--rpc_address=127.0.0.1",
            f"--rpc_port={self.port}",
            "--metrics_host=127.0.0.1",
            f"--metrics_port={free_port()}",
            "--enable_http_metadata_server=false",
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._provider: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
            wait_for_port(self.port, self._process)
            if self._provider is None:
                self._provider = subprocess.Popen(
                    [sys.executable, "-c", _PROVIDER, f"127.0.0.1:{self.port}"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
                assert self._provider.stdout is not None
                assert self._provider.stdout.readline() == "ready\n"

    def kill(self) -> None:
        """SIGKILL of the master: it forgets everything. The memory stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self, paused: bool) -> None:
        """SIGSTOP or SIGCONT: the port answers, the master does not."""
        assert self._process is not None
        self._process.send_signal(19 if paused else 18)

    def end(self) -> None:
        self.kill()
        if self._provider is not None:
            self._provider.kill()
            self._provider.communicate()


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


def eventually(check: Callable[[], bool], never_s: float = 60) -> None:
    """Waits for what must happen sooner or later; a minute is never, but where vLLM starts."""
    end = time.monotonic() + never_s
    while not check():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    process.kill()
    process.wait()
    raise RuntimeError(f"{process.args!r} did not listen on port {port}")


@contextlib.contextmanager
def full_server() -> Iterator[int]:
    """A port that answers no SYN: nobody accepts, and no more connections may wait for that."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@contextlib.contextmanager
def rude_server() -> Iterator[int]:
    """A port that hangs up on whoever connects, as soon as a word was said."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with contextlib.closing(server.accept()[0]) as caller:
                        caller.recv(1)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()

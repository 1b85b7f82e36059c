"""The server that misbehaves, as a process."""

from __future__ import annotations

import subprocess
import sys

from tests.cache_core.servers import free_port, wait_for_port
from tests.lmcache_cli import odd_server


class OddServer:
    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, odd_server.__file__, str(self.port), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        wait_for_port(self.port, self.process)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

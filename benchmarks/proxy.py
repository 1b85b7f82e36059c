"""What `lmcache trace record` adds to the first token, against asking the server directly.

The server is one of its own that answers at once (its first token costs nothing, so that the
proxy's share is all there is to see), or --url for a real one:

    python benchmarks/proxy.py [--prompt-tokens 2000] [--rounds 9] [--requests 20] [--url URL]
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
_SERVER = """
import asyncio, json
from aiohttp import web

EVENT = b'data: {"choices": [{"index": 0, "text": "word "}]}\\n\\n'

async def models(request):
    return web.json_response({"data": [{"id": "instant"}]})

async def tokenize(request):
    asked = await request.json()
    return web.json_response({"tokens": [len(w) for w in str(asked).split()]})

async def complete(request):
    await request.read()
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    for _ in range(8):
        await answer.write(EVENT)
        await asyncio.sleep(0.001)
    await answer.write(b"data: [DONE]\\n\\n")
    await answer.write_eof()
    return answer

async def main():
    app = web.Application(client_max_size=0)
    app.add_routes([web.get("/v1/models", models), web.post("/tokenize", tokenize),
                    web.post("/v1/completions", complete)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--url")
    args = parser.parse_args()
    server = (
        None
        if args.url
        else subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE, text=True)
    )
    direct = args.url
    if server is not None and server.stdout is not None:
        direct = server.stdout.readline().strip()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lmcache_cli.main", "trace", "record"]
        command += [f"{folder}/trace.jsonl", "--url", direct, "--listen", "127.0.0.1:0"]
        proxy = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        try:
            assert proxy.stderr is not None
            began = proxy.stderr.readline()
            if not began.startswith("recording"):
                raise SystemExit(began.strip())
            times = measure(direct, began.split()[1], args)
        finally:
            for process in (proxy, server):
                if process is not None:
                    process.terminate()
                    process.communicate()
    show(
        times,
        f"{args.url or 'a server that answers at once'}, {args.prompt_tokens} words,\n"
        f"{args.rounds} rounds of {args.requests}",
    )


def measure(direct: str, proxied: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Median TTFT in seconds of each round, direct and through the proxy, in random order."""
    with closing(http.client.HTTPConnection(urlsplit(direct).netloc)) as connection:
        connection.request("GET", "/v1/models")
        model = json.load(connection.getresponse())["data"][0]["id"]
    times: dict[str, list[float]] = {"direct": [], "proxy": []}
    ways = [("direct", direct), ("proxy", proxied)]
    for number in range(args.rounds + 1):
        for name, url in random.sample(ways, 2):
            took = [first_token(url, model, args.prompt_tokens) for _ in range(args.requests)]
            if number:  # the first round warms both up
                times[name].append(median(took))
    return times


def first_token(url: str, model: str, words: int) -> float:
    """Seconds from the request to the first event, on a connection of its own."""
    prompt = " ".join(f"{random.randrange(10**4):04}" for _ in range(words))
    asked = {"model": model, "prompt": prompt, "max_tokens": 8, "stream": True}
    body = json.dumps(asked)
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.connect()
    began = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.readline()
    took = time.perf_counter() - began
    if answer.status != 200:
        raise SystemExit(f"{url} answered {answer.status}: {answer.read().decode()[:200]}")
    answer.read()
    connection.close()
    return took


def show(times: dict[str, list[float]], title: str) -> None:
    pairs = list(zip(times["direct"], times["proxy"], strict=True))
    rows = {
        "added, ms": [1e3 * (b - a) for a, b in pairs],
        "ratio": [b / a for a, b in pairs],
        "direct TTFT, ms": [1e3 * a for a, _ in pairs],
        "TTFT through the proxy, ms": [1e3 * b for _, b in pairs],
    }
    table = Table("", "median", "min", "max", title=title)
    for name, values in rows.items():
        table.add_row(name, *(f"{f(values):.3f}" for f in (median, min, max)))
    Console().print(table)


if __name__ == "__main__":
    main()

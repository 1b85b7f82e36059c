"""Records requests from the KV events that a vLLM server publishes: which blocks its prefix cache
stored and removed. No proxy, and of the tokens in them nothing is kept.

An event names a block's parent, so a prompt that stores a block is known to its beginning, and what
it hit with it. What events don't say: a prompt all of whose full blocks were held (unless requests
ask for ``kv_cache_report_mode`` "full"), tokens behind the last full block, and where a prompt ends
and its answer begins: blocks that come alone in a later step are taken as the answer's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Console

from cache_core.trace_writer import ServedRequest, TraceWriter
from lmcache_cli.errors import EXIT_FAILED, MissingError, UserError, ending_signals
from lmcache_cli.trace.recorder import Counts, counts_text, live_count

_CONNECT_S = 10.0
_BEAT_MS = 5000
_IDLE_S = 30.0
"""Seconds without a further block after which an answer counts as ended: a block of it takes one or
two."""
_LAST_S = 1.0
"""Seconds in which what the server has still to send comes, after the recording is to end."""


class Stored(NamedTuple):
    """Blocks that a request stored, or was said to have hit, one behind the other. ``parent`` is
    the block in front of them, None at a prompt's beginning."""

    blocks: tuple[bytes, ...]
    parent: bytes | None
    tokens: int
    session: str | None


class EventBatch(NamedTuple):
    """What one step of one engine did to its cache; None stands for clearing all of it."""

    at_s: float
    rank: int
    events: tuple[Stored | frozenset[bytes] | None, ...]


def read_batch(payload: bytes) -> EventBatch:
    """Reads a batch of events of vLLM, as maps or, as older versions have them, as arrays. Left out
    are blocks of other media than the cards', and of all groups of layers but the first. Raises
    ``ValueError`` for what is no such batch."""
    import msgspec

    try:
        at_s, events, *rest = msgspec.msgpack.decode(payload)
        found = [event for given in events if (event := _read(given)) is not _OTHER]
        return EventBatch(float(at_s), int(rest[0] or 0) if rest else 0, tuple(found))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"no batch of KV events: {error}") from error


_OTHER = object()
_ARRAYS = {
    "BlockStored": (
        *("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium"),
        *("lora_name", "extra_keys", "group_idx"),
    ),
    "BlockRemoved": ("block_hashes", "medium", "group_idx"),
    "AllBlocksCleared": (),
}


def _read(given: Any) -> Any:
    fields: Mapping[str, Any] = given
    if not isinstance(given, Mapping):
        fields = dict(zip(("type", *_ARRAYS[given[0]]), given, strict=False))
    kind = fields["type"]
    if kind == "AllBlocksCleared":
        return None
    if (fields.get("medium") or "GPU") != "GPU" or fields.get("group_idx") or kind not in _ARRAYS:
        return _OTHER
    blocks = tuple(_key(block) for block in fields["block_hashes"])
    if kind == "BlockRemoved":
        return frozenset(blocks)
    parent, session = fields["parent_block_hash"], fields.get("session_id")
    if (tokens := int(fields["block_size"])) < 1:
        raise ValueError(f"blocks of {tokens} tokens")
    return Stored(
        blocks,
        None if parent is None else _key(parent),
        tokens,
        None if session is None else str(session),
    )


def _key(block: int | bytes) -> bytes:
    return block if isinstance(block, bytes) else int(block).to_bytes(16, "big", signed=True)


@dataclass(slots=True)
class _Request:
    """A request as far as it is known. ``held`` of its ``prompt`` blocks were there when it came;
    ``fresh`` is the step that wrote to it last."""

    began_s: float
    prompt: list[bytes]
    held: int
    session: str | None
    answer: int = 0
    last_s: float = 0.0
    fresh: int = -1
    """The step in which it stored blocks last; -1: none yet."""
    told: int = -1
    """The step in which it was said what it hits; one that waits for room is said so each step."""
    cut: bool = False
    """Whether its beginning is not known."""


class SeenRequests:
    """Puts requests together from batches of events, which come in the order of the steps. Keeps a
    parent for every block that is held."""

    def __init__(self) -> None:
        self.block_tokens = 0
        self.began_s: float | None = None
        """The time of the first batch, on the server's clock."""
        self.cut = 0
        """Prompts that go on from blocks that were stored before the recording began."""
        self._parents: dict[tuple[int, bytes], bytes | None] = {}
        self._open: dict[tuple[int, bytes], _Request] = {}
        self._step = self._count = 0

    def take(self, batch: EventBatch) -> Iterator[ServedRequest]:
        """Takes a batch and yields requests that ended. Raises ``UserError`` if blocks change their
        length."""
        self._step += 1
        if self.began_s is None:
            self.began_s = batch.at_s
        for event in batch.events:
            if isinstance(event, Stored):
                self._stored(batch, event)
            elif event is None:
                self._parents = {k: p for k, p in self._parents.items() if k[0] != batch.rank}
            else:
                for block in event:
                    self._parents.pop((batch.rank, block), None)
        for tip, request in list(self._open.items()):
            if batch.at_s - request.last_s > _IDLE_S:
                yield from self._ended(self._open.pop(tip))

    def end(self) -> Iterator[ServedRequest]:
        """Yields the requests that are left."""
        for request in self._open.values():
            yield from self._ended(request)
        self._open = {}

    def _stored(self, batch: EventBatch, event: Stored) -> None:
        if self.block_tokens not in (0, event.tokens):
            raise UserError(
                f"--kv-events: blocks of {event.tokens} tokens after some of {self.block_tokens};"
                " record one server at a time"
            )
        if not event.blocks:
            return
        self.block_tokens = event.tokens
        rank, parent, tip = batch.rank, event.parent, (batch.rank, event.blocks[-1])
        hit = parent is None and all((rank, block) in self._parents for block in event.blocks)
        going = self._open.get(tip if hit else (rank, parent or b""))
        if hit and going is not None and going.fresh < 0 and going.told == self._step - 1:
            going.told, going.last_s = self._step, batch.at_s
            return
        if not hit and going is not None and self._goes_on(going, event):
            request = self._open.pop((rank, parent or b""))
        else:
            prefix = list(event.blocks) if hit else self._prefix(rank, parent)
            known = prefix or []
            request = _Request(batch.at_s, known, len(known), event.session)
            request.cut = prefix is None
            self.cut += request.cut
        if hit:
            request.told = self._step
        else:
            self._grow(request, event)
            before = parent
            for block in event.blocks:
                self._parents[rank, block] = before
                before = block
        request.last_s = batch.at_s
        if (other := self._open.get(tip)) is not None:  # the same prompt once more
            self._open[rank, b"%d " % self._step + event.blocks[-1]] = other
        self._open[tip] = request

    def _goes_on(self, going: _Request, event: Stored) -> bool:
        """Returns whether blocks are of the request that ends in front of them, not of another that
        begins with it: a request stores once a step, no prompt after its answer began."""
        if going.fresh == self._step:
            return False
        return len(event.blocks) == 1 or not going.answer

    def _grow(self, request: _Request, event: Stored) -> None:
        first = request.fresh < 0
        if first or (len(event.blocks) > 1 and not request.answer):
            request.prompt += event.blocks
        else:
            request.answer += len(event.blocks)
        request.fresh = self._step

    def _prefix(self, rank: int, parent: bytes | None) -> list[bytes] | None:
        """Returns the blocks up to ``parent``; None if their beginning is not known."""
        found = []
        while parent is not None:
            found.append(parent)
            # More than all there are is a circle, which a server in its senses does not tell of.
            if (rank, parent) not in self._parents or len(found) > len(self._parents):
                return None
            parent = self._parents[rank, parent]
        return found[::-1]

    def _ended(self, request: _Request) -> Iterator[ServedRequest]:
        size = self.block_tokens
        if request.cut:
            return
        self._count += 1
        yield ServedRequest(
            str(self._count),
            request.began_s,
            len(request.prompt) * size + size // 2,
            max(1, request.answer * size),
            request.prompt,
            {"device": request.held * size},
            session=request.session,
        )


async def record_events(
    open_writer: Callable[[int, float], TraceWriter],
    endpoint: str,
    duration_s: float | None,
    limit: int | None,
    quiet: bool,
) -> int:
    """Records the events of ``endpoint`` until it is stopped; returns the exit code.
    ``open_writer`` makes the trace for a block's length in tokens and the time of its beginning.
    Raises ``MissingError`` where nothing listens there, ``UserError`` if blocks change their
    length; what was seen before is in the trace then."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    stop = asyncio.Event()
    seen, counts, told = SeenRequests(), Counts(), Counter[str]()
    writer: TraceWriter | None = None
    names: set[bytes] = set()

    def write(requests: Iterator[ServedRequest]) -> None:
        nonlocal writer
        for one in requests:
            # Of the first batch: the first request that ends need not be the first that came.
            writer = writer or open_writer(seen.block_tokens, seen.began_s or 0.0)
            if limit is None or counts.requests < limit:
                writer.write(one)
                counts.saw(one, names, seen.block_tokens)
        if limit is not None and counts.requests >= limit:
            stop.set()

    loop = asyncio.get_running_loop()
    trouble: OSError | None = None
    with _subscribed(endpoint) as socket:
        monitor = await _connected(socket, endpoint)
        for number in ending_signals():
            loop.add_signal_handler(number, stop.set)
        if duration_s is not None:
            loop.call_later(duration_s, stop.set)
        if not quiet:
            console.print(f"recording {endpoint}; Ctrl-C ends it", markup=False)
        watch = asyncio.create_task(_watched(monitor, endpoint, console))
        with live_count(console, counts, quiet):
            try:
                try:
                    await _until(stop, socket, told, lambda batch: write(seen.take(batch)))
                finally:
                    write(seen.end())
            except OSError as error:
                trouble = error
            finally:
                watch.cancel()
                if writer is not None:
                    with contextlib.suppress(OSError):
                        writer.close()
    if trouble is not None:
        console.print(f"lmcache: the trace can't be written ({trouble.strerror})", markup=False)
        return EXIT_FAILED
    console.print(f"{counts_text(counts)}; {told['batches']:,} batches of events", markup=False)
    for count, what in (
        (told["missed"], "batches were missed; a slow reader, or a full queue of the server's"),
        (told["odd"], "messages were no batches of KV events"),
        (seen.cut, "prompts begin with blocks of before the recording; those are left out"),
    ):
        if count:
            console.print(f"{count:,} {what}", markup=False)
    if writer is None:
        console.print("no request was seen, so there is no trace")
    return 0


async def _until(
    stop: asyncio.Event, socket: Any, told: Counter[str], take: Callable[[EventBatch], None]
) -> None:
    """Takes batches until it is to stop, and what the server had still to send of answers that it
    has given by then."""
    ended = asyncio.create_task(_after(stop, _LAST_S))
    expected: int | None = None
    try:
        while True:
            coming = asyncio.ensure_future(socket.recv_multipart())
            await asyncio.wait((ended, coming), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                coming.cancel()
                return
            frames: Sequence[bytes] = coming.result()
            try:
                batch = read_batch(frames[-1])
                number = int.from_bytes(frames[-2], "big")
            except (ValueError, IndexError):
                told["odd"] += 1
                continue
            told["batches"] += 1
            told["missed"] += max(0, number - expected) if expected is not None else 0
            expected = number + 1
            take(batch)
    finally:
        ended.cancel()


async def _after(stop: asyncio.Event, seconds: float) -> None:
    await stop.wait()
    await asyncio.sleep(seconds)


@contextlib.contextmanager
def _subscribed(endpoint: str) -> Iterator[Any]:
    import zmq
    import zmq.asyncio

    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    try:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        # ZeroMQ asks the other side itself: one that stands still is missed too, by twice that.
        socket.setsockopt(zmq.HEARTBEAT_IVL, _BEAT_MS)
        yield socket
    finally:
        context.destroy(linger=0)  # with the monitor's socket, which would keep it waiting


async def _watched(monitor: Any, endpoint: str, console: Console) -> None:
    """Says when the server hangs up, and when it is back."""
    there = True
    while True:
        if (await _shaken(monitor)) != there:
            there = not there
            said = "is back" if there else "has ended or hangs; Ctrl-C ends the wait for it"
            console.print(f"{endpoint}: the server {said}", markup=False)


async def _shaken(monitor: Any) -> bool:
    """Waits for what comes next; returns whether that is a connection, not the end of one."""
    from zmq import EVENT_HANDSHAKE_SUCCEEDED
    from zmq.utils.monitor import parse_monitor_message

    event = parse_monitor_message(await monitor.recv_multipart())["event"]
    return bool(event == EVENT_HANDSHAKE_SUCCEEDED)


async def _connected(socket: Any, endpoint: str) -> Any:
    """Connects, and returns a socket that tells when the connection ends and when there is one.
    Raises ``UserError`` for what is no address, ``MissingError`` if nothing answers in ten seconds:
    ZeroMQ would wait for ever."""
    import zmq

    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        raise UserError(
            f"--kv-events: {endpoint!r} is no address ({error}); write it like tcp://127.0.0.1:5557"
        ) from None
    try:
        async with asyncio.timeout(_CONNECT_S):
            while not await _shaken(monitor):
                pass  # one that hung up at once
    except TimeoutError:
        raise MissingError(
            f"--kv-events: nothing publishes at {endpoint}; start vLLM with --kv-events-config"
            ' \'{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557"}\''
        ) from None
    return monitor

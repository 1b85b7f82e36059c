"""Declares what csrc does, as Python sees it. Sizes, strides and addresses are in bytes.

All functions let go of the interpreter lock while they hash or move; the Ledger's keep it. Arrays
are taken as they are, never converted: another dtype, rank or a gap between elements is a
``TypeError``. Addresses must be valid for the length of the call; nothing can check that.
``threads`` counts the caller's own; the rest come from one pool, which starts when first needed, is
shared by all callers and is started anew in a forked child. A call that moves less than 256 KiB
uses the caller's thread alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from cache_core.ledger import Books
from cache_core.plan import Move
from cache_core.policies import Admission

Order = Literal["HND", "NHD"]
Item = Literal["float32", "bfloat16", "float16"]
Code = Literal["fp8", "int8"]

CUDA: Final[str]
"""The state of the CUDA kernels: ``"built by CUDA ..."``, or ``"not built: "`` and why."""

PREFIX_DOMAIN: Final[bytes]
CONTENT_DOMAIN: Final[bytes]

def sha256_backend() -> str:
    """Returns ``"sha-ni"`` where the CPU has SHA instructions, else ``"portable"``."""

def chunk_keys(
    tokens: NDArray[np.int32],
    chunk_tokens: int,
    root: bytes,
    namespace: bytes,
    content: bool = True,
    portable: bool = False,
) -> tuple[list[bytes], list[bytes]]:
    """Returns prefix keys and content keys, 32 bytes each, of the full chunks of ``tokens``
    ``[n]``.

    prefix[i] = sha256(PREFIX_DOMAIN | prefix[i-1], or root for i = 0 | int32 bytes of chunk i)
    content[i] = sha256(CONTENT_DOMAIN | namespace | int32 bytes of chunk i)

    Bytes are little-endian. Without ``content`` the second list is empty. ``portable`` leaves the
    CPU's SHA instructions out. Raises ``ValueError`` if ``chunk_tokens`` < 1 or ``root`` or
    ``namespace`` has not 32 bytes.
    """

class Slab:
    """Zeroed memory, every page present, 4096-aligned, on huge pages where the kernel has them.

    Freed when the object and all its views are gone. Raises ``MemoryError`` if the machine has not
    that much available, ``ValueError`` if ``nbytes`` < 1.
    """

    def __init__(self, nbytes: int, numa_node: int = -1) -> None:
        """Takes the memory of ``numa_node``, as far as that has space; -1 for any."""

    @property
    def address(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def view(self) -> NDArray[np.uint8]:
        """Returns the memory itself, ``[nbytes]``, writable; it keeps the slab alive."""

class Paged:
    """The layout of an engine's paged KV. ``item_bytes`` contiguous bytes lie at

    base[kv][layer] + (slot // block_tokens) * block_stride + (slot % block_tokens) * token_stride
    + head * head_stride + item * item_stride

    ``k_bases`` and ``v_bases`` are ``[layers]``; an empty ``v_bases`` says that there is one plane
    only (MLA). Slots are 0 to ``num_slots - 1``. A head is ``head_bytes // item_bytes`` items; by
    default it is one. ``v_token_stride`` and ``v_item_stride`` are V's own, where K is kept
    transposed (vLLM's CPU backend). Raises ``ValueError``, naming the field, for what can't be a
    layout.
    """

    def __init__(
        self,
        k_bases: NDArray[np.uint64],
        v_bases: NDArray[np.uint64],
        block_tokens: int,
        block_stride: int,
        token_stride: int,
        head_stride: int,
        kv_heads: int,
        head_bytes: int,
        num_slots: int,
        item_bytes: int | None = None,
        item_stride: int | None = None,
        v_token_stride: int | None = None,
        v_item_stride: int | None = None,
    ) -> None: ...
    @property
    def overlaps(self) -> bool:
        """Returns whether tokens, heads or planes share bytes: such KV can only be read."""

def pieces(paged: Paged, slots: NDArray[np.int64], order: Order) -> tuple[int, int]:
    """Counts the runs of bytes, each contiguous in the engine and in a chunk, that a move of
    ``slots`` ``[n, chunk_tokens]`` has, and their bytes in all. Raises ``IndexError`` for a slot
    that is not in the engine's KV."""

def gather(
    paged: Paged,
    slots: NDArray[np.int64],
    chunks: NDArray[np.uint64],
    order: Order,
    threads: int = 1,
) -> None:
    """Copies engine KV to chunk i's bytes at ``chunks[i]``, for ``slots`` ``[n, chunk_tokens]``.

    A chunk's bytes are ``[layers][planes][kv_heads][chunk_tokens][head_bytes]`` for ``"HND"``,
    ``[layers][planes][chunk_tokens][kv_heads][head_bytes]`` for ``"NHD"``. A token with slot -1 is
    left as it is on both sides. Raises ``IndexError`` for any other slot that the engine has not,
    ``ValueError`` for another order or number of chunks, for null addresses and for destinations
    that overlap, all before any byte moves.
    """

def scatter(
    paged: Paged,
    slots: NDArray[np.int64],
    chunks: NDArray[np.uint64],
    order: Order,
    threads: int = 1,
) -> None:
    """Copies chunk i's bytes at ``chunks[i]`` to engine KV: ``gather`` backwards. Raises
    ``IndexError`` for a slot that the engine has not, ``ValueError`` for another order or number of
    chunks, for null addresses and where a slot comes twice."""

def gather_rows(
    paged: Paged,
    slots: NDArray[np.int64],
    chunks: NDArray[np.uint64],
    order: Order,
    groups: int = 3,
    lanes: int = 4,
) -> None:
    """Copies as ``gather`` does, by the code that a GPU runs, ``groups`` of ``lanes`` one after
    another: a means of testing that code. Raises ``ValueError`` too where a head's bytes lie
    apart."""

def scatter_rows(
    paged: Paged,
    slots: NDArray[np.int64],
    chunks: NDArray[np.uint64],
    order: Order,
    groups: int = 3,
    lanes: int = 4,
) -> None:
    """Copies as ``scatter`` does, by the code that a GPU runs: a means of testing that code. Raises
    ``ValueError`` too where a head's bytes lie apart."""

def gather_coded(
    paged: Paged,
    slots: NDArray[np.int64],
    chunks: NDArray[np.uint64],
    order: Order,
    dtype: Item,
    codec: Code,
    threads: int = 1,
    portable: bool = False,
) -> None:
    """Copies as ``gather`` does, with each item of ``dtype`` coded in one byte.

    ``"fp8"`` is E4M3 (OCP 8-bit Floating Point Specification), ``"int8"`` symmetric. A row, one
    head of one token, has a float32 scale: its largest finite magnitude over 448 or 127. A coded
    chunk is the codes in the raw chunk's order, up to a multiple of 16 bytes, then the rows' scales
    in that order: :func:`coded_bytes`.
    """

def scatter_coded(
    paged: Paged,
    slots: NDArray[np.int64],
    chunks: NDArray[np.uint64],
    order: Order,
    dtype: Item,
    codec: Code,
    threads: int = 1,
    portable: bool = False,
) -> None:
    """Copies coded chunks to engine KV, ``gather_coded`` backwards: code times scale, rounded to
    ``dtype``."""

def encode(
    dst: NDArray[np.uint64],
    src: NDArray[np.uint64],
    rows: int,
    items: int,
    dtype: Item,
    codec: Code,
    threads: int = 1,
    portable: bool = False,
) -> None:
    """Codes raw chunks of ``rows`` rows of ``items`` items at ``src`` to ``dst``, in the form that
    :func:`gather_coded` has. Raises ``ValueError`` for null addresses and destinations that
    overlap."""

def decode(
    dst: NDArray[np.uint64],
    src: NDArray[np.uint64],
    rows: int,
    items: int,
    dtype: Item,
    codec: Code,
    threads: int = 1,
    portable: bool = False,
) -> None:
    """Decodes chunks that :func:`encode` made at ``src`` to raw ones at ``dst``. Raises
    ``ValueError`` for null addresses and destinations that overlap."""

def coded_bytes(rows: int, items: int) -> int:
    """Returns the bytes of a coded chunk. Raises ``ValueError`` for sizes below 1."""

def copy(
    dst: NDArray[np.uint64],
    src: NDArray[np.uint64],
    nbytes: NDArray[np.uint64],
    threads: int = 1,
) -> None:
    """Copies ``nbytes[i]`` bytes from ``src[i]`` to ``dst[i]``. Raises ``ValueError`` if the arrays
    differ in length, for addresses that no process has and for destinations that overlap."""

def crc32c(data: bytes, before: int = 0, portable: bool = False) -> int:
    """Returns the CRC-32C of ``data``; ``before`` continues an earlier result. ``portable`` leaves
    the CPU's instruction out."""

def xxh3_128(data: bytes) -> bytes:
    """Returns the XXH3-128 of ``data``, 16 bytes in canonical order."""

def write_records(
    fds: NDArray[np.int32],
    offsets: NDArray[np.int64],
    addresses: NDArray[np.uint64],
    keys: NDArray[np.uint8],
    sequences: NDArray[np.uint64],
    namespace: bytes,
    payload_bytes: int,
    direct: bool,
    depth: int,
) -> NDArray[np.int32]:
    """Writes record i, header and payload, at ``offsets[i]`` of file ``fds[i]``, up to ``depth`` at
    once. ``keys`` is ``[n, 32]``. ``direct`` says that files are open with O_DIRECT.

    Returns 0 or errno for each. Raises ``ValueError`` for arrays of different lengths, offsets that
    are no multiple of 4096 and sizes below 1, before any byte moves.
    """

def read_records(
    fds: NDArray[np.int32],
    offsets: NDArray[np.int64],
    addresses: NDArray[np.uint64],
    keys: NDArray[np.uint8],
    sequences: NDArray[np.uint64],
    namespace: bytes,
    payload_bytes: int,
    direct: bool,
    depth: int,
) -> NDArray[np.int32]:
    """Reads payload i to ``addresses[i]`` and proves that it is the record that was asked for.

    Returns for each: 0, or errno, or -1 (no sound header), -2 (another record), -3 (the payload
    does not match its hash), -4 (the file ends); memory is undefined then. Raises ``ValueError``
    for arrays of different lengths, offsets that are no multiple of 4096 and sizes below 1.
    """

def scan_records(
    fds: NDArray[np.int32],
    offsets: NDArray[np.int64],
    namespace: bytes,
    payload_bytes: int,
    direct: bool,
    depth: int,
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.uint64]]:
    """Returns what is at the offsets: statuses as from :func:`read_records`, or -5 where a header's
    bytes are all zeros; keys ``[n, 32]``; sequences. Only where the status is 0 do the others mean
    anything. Raises ``ValueError`` for arrays of different lengths, offsets that are no multiple of
    4096 and sizes below 1."""

def copy_records(
    from_fds: NDArray[np.int32],
    from_offsets: NDArray[np.int64],
    to_fds: NDArray[np.int32],
    to_offsets: NDArray[np.int64],
    payload_bytes: int,
    direct: bool,
    depth: int,
) -> NDArray[np.int32]:
    """Copies records as they are, damage and all; statuses as from :func:`read_records`. Raises
    ``ValueError`` for arrays of different lengths, offsets that are no multiple of 4096 and sizes
    below 1."""

class Distances(TypedDict):
    """Tokens by the smallest LRU capacity in chunks that hits them, int64 ``[distinct + 1]``, and
    those that none hits. ``total`` counts all tokens, ``sampled`` those that the sample took."""

    prefix: NDArray[np.int64]
    any_position: NDArray[np.int64]
    prefix_missed: int
    any_missed: int
    total: int
    sampled: int
    distinct: int

def count_distances(
    ids: NDArray[np.int64],
    offsets: NDArray[np.int64],
    chunk_tokens: int = 1,
    prompt_tokens: NDArray[np.int64] | None = None,
    threshold: int = 2**64 - 1,
    seed: int = 0,
) -> Distances:
    """Counts tokens of ``ids`` ``[references]`` by the smallest LRU capacity that hits them:
    request i has those from ``offsets[i]`` to before ``offsets[i + 1]``. A chunk has
    ``chunk_tokens``, as far as ``prompt_tokens[i]`` reach. Only chunks whose hash with ``seed`` is
    at most ``threshold`` count.

    Memory is O(distinct chunks). Raises ``ValueError`` for offsets that do not rise from 0 to
    ``len(ids)``, prompts of another number than requests, and ``chunk_tokens`` < 1.
    """

def stack_distances(ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the smallest LRU capacity that holds each reference's chunk when its request comes;
    -1 where none does. Raises ``ValueError`` for offsets that do not rise from 0 to
    ``len(ids)``."""

def last_uses(ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the request that used each reference's chunk before; its own where the chunk stood in
    it already, -1 if none did. Raises ``ValueError`` for offsets that do not rise from 0 to
    ``len(ids)``."""

def chain_names(ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns for each name a 64-bit hash of all names of its request up to it. Raises
    ``ValueError`` for offsets that do not rise from 0 to ``len(ids)``."""

def group_names(
    ids: NDArray[np.int64], offsets: NDArray[np.int64], group: int, chained: bool
) -> NDArray[np.int64]:
    """Returns names of chunks ``group`` times as long, of full groups only: the last name of each
    if names are ``chained``, else a 64-bit hash of all. Raises ``ValueError`` for offsets that do
    not rise from 0 to ``len(ids)`` and for ``group`` < 1."""

def sampled(ids: NDArray[np.int64], threshold: int, seed: int) -> NDArray[np.bool_]:
    """Returns which chunks a sample takes: hashes with ``seed`` of at most ``threshold``."""

def tier_hits(
    distances: NDArray[np.int64],
    offsets: NDArray[np.int64],
    capacities: NDArray[np.int64],
    exclusive: bool,
) -> NDArray[np.int32]:
    """Returns how many chunks of each request's leading held run each tier serves, ``[stacks,
    requests, tiers]``, for ``capacities`` ``[stacks, tiers]``; negative is without a bound. Raises
    ``ValueError`` for offsets that do not rise from 0 to ``len(distances)``."""

def serve(
    at: NDArray[np.float64], prompt: NDArray[np.int64], output: NDArray[np.int64],
    hits: NDArray[np.int32], chunks: NDArray[np.int64], offsets: NDArray[np.int64],
    loads: NDArray[np.float64], chunk_tokens: int, seconds: NDArray[np.float64], overlap: bool,
    device: bool, budget: int, most: int, room: int, clients: int,
) -> dict[str, Any]:  # fmt: skip
    """Runs requests in an engine that batches continuously (``csrc/curves/serving.h``)."""

class Future:
    """Knows when each chunk will be used: request i has the keys ``requests[i]``. Raises
    ``ValueError`` for keys of other than 32 bytes."""

    def __init__(self, requests: Sequence[Sequence[bytes]]) -> None: ...
    @staticmethod
    def numbered(ids: NDArray[np.int64], offsets: NDArray[np.int64]) -> Future:
        """Makes it of requests whose chunks are numbers: keys of 32 bytes, little-endian."""

def Ledger(
    capacities: Sequence[int | None],
    policy: str,
    future: Future | None,
    exclusive: bool,
    move: type[Move],
) -> Books:
    """Makes the books of a Ledger. ``future`` is for the policy ``"belady"`` alone; ``move`` is the
    class of what is answered, a tuple of four. Raises ``ValueError`` for more than 8 tiers and
    unknown policies."""

def replay(
    ids: NDArray[np.int64], offsets: NDArray[np.int64], capacities: Sequence[int | None],
    policy: str, future: Future | None, exclusive: bool,
    admissions: list[Admission | None], on_request: Callable[[int], None] | None,
) -> tuple[NDArray[np.int32], list[int]]:  # fmt: skip
    """Looks up and admits requests in turn; returns hits, and what each tier took."""

def pack_moves(moves: tuple[Move, ...]) -> bytes:
    """Returns moves as bytes, for other processes of the same build. Raises ``TypeError`` or
    ``ValueError`` for what is no move."""

def unpack_moves(packed: bytes, move: type[Move]) -> list[Move]:
    """Returns the moves that :func:`pack_moves` packed. Raises ``ValueError`` for other bytes."""

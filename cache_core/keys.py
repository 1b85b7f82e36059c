"""Makes chunk keys: 32 bytes that say what may be reused for what.

There are two key families. A *prefix* key names a chunk together with everything before it: a hit
on it is exact. A *content* key names the chunk's tokens alone: a hit on it is only usable through
blend. Both are salted with the whole namespace, so that KV of another model, dtype, layout,
adapter, shard or tenant can never be served.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_core import _native
from cache_core.layout import KVLayout

# Of a configuration: where it came from, not what it says.
_NO_MATTER = frozenset({"_name_or_path", "_commit_hash", "transformers_version"})


def canonical(value: Any) -> str:
    """Returns a setting as text, whatever order a mapping or set has it in. A function is its code
    and what it encloses; of an object that says nothing of itself the text differs in each
    process."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(sorted(f"{k!r}: {canonical(v)}" for k, v in value.items())) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(canonical, value))) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(canonical, value)) + "]"
    code = getattr(value, "__code__", None)
    if isinstance(code, CodeType):
        closed = [cell.cell_contents for cell in value.__closure__ or ()]
        beside = canonical([closed, value.__defaults__, value.__kwdefaults__])
        return f"{value.__module__}.{value.__qualname__} {_code(code)} {beside}"
    return repr(value)


def config_digest(config: Any) -> str:
    """Returns a digest of a model's configuration (a Hugging Face one, or any object) as it is in
    force, overrides applied; empty text for None."""
    if config is None:
        return ""
    fields = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    kept = {name: value for name, value in fields.items() if name not in _NO_MATTER}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def _code(code: CodeType) -> str:
    consts = [_code(c) if isinstance(c, CodeType) else canonical(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {consts}"


_NAMESPACE_DOMAIN = b"lmcache.namespace/1"
_ROOT_DOMAIN = b"lmcache.root/1"
_BESIDE_DOMAIN = b"lmcache.beside/1"


@dataclass(frozen=True, slots=True)
class Namespace:
    """Everything that must be equal for two processes to share KV.

    ``revision`` is a commit or a digest of the weights, ``rope`` the RoPE parameters as text,
    ``tokenizer`` a digest, ``lora`` the adapter's digest, ``shard`` the tensor- and
    pipeline-parallel rank, ``attention`` the backend whose memory layout the bytes have, and
    ``salt`` separates tenants (or runs: a benchmark proves a cold start with it). ``extra`` is
    whatever else an engine's KV depends on, by name.
    """

    layout: KVLayout
    model: str
    revision: str = ""
    lora: str = ""
    quantisation: str = ""
    rope: str = ""
    tokenizer: str = ""
    shard: str = ""
    attention: str = ""
    salt: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def digest(self) -> bytes:
        """Returns 32 bytes, equal on every host and in every process for equal fields.

        Names and values are length-framed, so that no two different sets of fields can ever be the
        same byte string.
        """
        fields = {f"layout.{name}": value for name, value in self.layout.fields().items()}
        fields |= {f"extra.{name}": value for name, value in self.extra.items()}
        for name in ("model", "revision", "lora", "quantisation", "rope", "tokenizer"):
            fields[name] = getattr(self, name)
        for name in ("shard", "attention", "salt"):
            fields[name] = getattr(self, name)
        digest = hashlib.sha256(_NAMESPACE_DOMAIN)
        for name in sorted(fields):
            for text in (name, fields[name]):
                data = text.encode()
                digest.update(len(data).to_bytes(8, "little"))
                digest.update(data)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """Keys of a prompt's full chunks, first chunk first; ``content`` is empty if not asked for."""

    prefix: list[bytes]
    content: list[bytes]


class ChunkHasher:
    """Turns token ids into keys: ``sha256`` in C++, the interpreter lock released.

    prefix[i]  = sha256(domain | prefix[i-1] | int32 tokens of chunk i), chained from a root that
                 is the digest of the namespace;
    content[i] = sha256(domain2 | namespace | int32 tokens of chunk i).
    """

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.chunk_tokens = namespace.layout.chunk_tokens
        self._digest = namespace.digest()
        self._root = hashlib.sha256(_ROOT_DOMAIN + self._digest).digest()

    def beside(self, after: bytes | None, what: bytes) -> bytes:
        """Returns the ``after`` to give to :meth:`keys`, instead of ``after`` itself, for a chunk
        that holds more than its tokens, such as images. Equal for equal ``what`` alone."""
        return hashlib.sha256(_BESIDE_DOMAIN + (after or self._root) + what).digest()

    def keys(
        self,
        token_ids: NDArray[np.int32] | Sequence[int],
        content: bool = False,
        after: bytes | None = None,
    ) -> ChunkKeys:
        """Returns the keys of the full chunks of ``token_ids`` (one dimension); a partial tail has
        no key. ``after`` continues a prompt after the chunk with that prefix key.

        Raises ``ValueError`` for an array of another rank, ``OverflowError`` for ids that do not
        fit int32.
        """
        tokens = token_ids
        if not isinstance(tokens, np.ndarray):
            tokens = np.array(tokens, dtype=np.int32)
        elif tokens.dtype != np.int32:
            narrow = tokens.astype(np.int32)
            if not np.array_equal(narrow, tokens):
                raise OverflowError("token ids do not fit int32")
            tokens = narrow
        tokens = np.ascontiguousarray(tokens)
        if tokens.ndim != 1:
            raise ValueError(f"token ids have {tokens.ndim} dimensions; give one request's, flat")
        prefix, contents = _native.chunk_keys(
            tokens, self.chunk_tokens, after or self._root, self._digest, content
        )
        return ChunkKeys(prefix, contents)

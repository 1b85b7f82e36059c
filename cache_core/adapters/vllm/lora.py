"""Which LoRA adapter a request has: a digest of what vLLM reads it from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from huggingface_hub import try_to_load_from_cache

from cache_core.weights import FileDigests, Identity, adapter_files, file_identity, settled

# An adapter that was just written is read anew for each request as long as that is quick.
_QUICK_BYTES = 16 << 20
# By then vLLM has long dropped the adapter itself, and reads its files again.
_MOST_SEEN = 4096


@dataclass(frozen=True, slots=True)
class Adapter:
    """``digest`` is empty without one. ``unknown`` says why it can't be told what an adapter is:
    then the digest is random, and nothing of it may be shared. ``renamed`` says that its name and
    path were another's before: vLLM's own prefix cache takes one for the other."""

    digest: str = ""
    unknown: str = ""
    renamed: bool = False


@dataclass(frozen=True, slots=True)
class _Seen:
    files: tuple[tuple[str, Identity], ...]
    digest: str


class Adapters:
    """Knows vLLM's adapters by their ids. vLLM reads an adapter when its id first comes, and again
    if a request says so (``load_inplace``): what its files hold at another time is not what it
    computes with."""

    def __init__(self, digests: FileDigests | None = None) -> None:
        self._digests = digests or FileDigests(None)
        self._seen: dict[int, _Seen] = {}
        self._named: dict[tuple[str, str], str | None] = {}  # None: more than one

    def of(self, lora: Any) -> Adapter:
        """What one of vLLM's ``LoRARequest`` is now; None is no adapter."""
        if lora is None:
            return Adapter()
        try:
            return self._of(lora)
        except OSError:
            return _unknown("adapter_unknown")

    def _of(self, lora: Any) -> Adapter:
        folder = _folder(str(lora.lora_path))
        files = adapter_files(folder) if folder is not None else []
        # Some frameworks give tensors, and a path that means nothing.
        if folder is None or not files or getattr(lora, "lora_tensors", None) is not None:
            return _unknown("adapter_unknown")
        now = tuple((path.name, file_identity(path)) for path in files)
        quick = sum(identity[2] for _, identity in now) <= _QUICK_BYTES
        ready = quick or settled(identity for _, identity in now)
        digest = self._digests.of(files, folder) if ready else ""
        known = self._seen.pop(lora.lora_int_id, None)
        given = _Seen(now, digest)
        again = bool(getattr(lora, "load_inplace", False))
        if known is None or again or (known.files == now and not known.digest):
            known = given
        same = known.digest == digest if known.digest and digest else known.files == now
        self._seen[lora.lora_int_id] = known
        if len(self._seen) > _MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        if not same:
            return _unknown("adapter_changed")
        if not digest:
            return _unknown("adapter_just_written")
        name = lora.lora_name, lora.lora_path
        self._named[name] = digest if self._named.pop(name, digest) == digest else None
        if len(self._named) > _MOST_SEEN:
            del self._named[next(iter(self._named))]
        text = f"{digest} {getattr(lora, 'is_3d_lora_weight', False)}"
        return Adapter(text, renamed=self._named[name] is None)


def _unknown(why: str) -> Adapter:
    return Adapter(f"unknown {token_hex(16)}", why)


def _folder(path: str) -> Path | None:
    """Where vLLM finds the adapter; a hub's, once it was fetched."""
    local = Path(path).expanduser()
    if local.is_absolute() or local.exists():
        return local
    try:
        found = try_to_load_from_cache(path, "adapter_config.json")
    except ValueError:  # neither a path nor an id
        return None
    return Path(found).parent if isinstance(found, str) else None

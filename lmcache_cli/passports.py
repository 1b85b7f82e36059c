"""Passports of models for blend: where they lie, and refusing a model that has none."""

from __future__ import annotations

import re
from pathlib import Path

from cache_core.blend.passport import Passport, PassportError, Subject, checked_passport
from lmcache_cli.errors import CellMissingError
from lmcache_cli.home import cache_home

_NAME_LENGTH = 60


def passport_path(subject: Subject) -> Path:
    """A model's own file below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", Path(subject.model).name)[:_NAME_LENGTH]
    return cache_home() / "blend" / f"{name}-{subject.digest[:16]}.json"


def require_passport(
    subject: Subject, given: Path | None, model: str | None, dtype: str
) -> tuple[Path, Passport]:
    """The model's passport, from ``given`` or its own place. ``model`` and ``dtype`` are flags as
    the user gave them. Raises ``CellMissingError`` with the command that makes it."""
    path = given or passport_path(subject)
    if given is None and not path.exists():
        lack = f"{subject.model} in {subject.dtype} has not passed the gates of blend"
    else:
        try:
            return path, checked_passport(path, subject)
        except PassportError as error:
            lack = str(error)
    command = "lmcache verify --blend" + (f" --model {model}" if model else "")
    if dtype not in ("auto", "float32"):
        command += f" --dtype {dtype}"
    if given is not None:
        command += f" --out {given}"
    raise CellMissingError(f"--reuse blend: {lack}; run: {command}, or add --unverified")

"""``--config FILE``: flags from YAML; ``--resume RUN``: those of a run. Flags on the command line
win."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from lmcache_cli.errors import UserError


def load_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's values the command's defaults. Raises ``UserError`` for a file that can't
    be read, is no mapping, or has a key that is no flag of the command."""
    if path is None:
        return None
    import yaml

    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        where = str(error).replace("\n", " ")
        raise UserError(f"--config {path}: not valid YAML: {where}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected lines like 'cpu-size: 4GiB'")
    known = {param.name for param in ctx.command.params if param.name}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known or name == "config":
            flags = ", ".join(sorted(n.replace("_", "-") for n in known - {"config"}))
            raise UserError(f"--config {path}: {key!r} is no flag; these are: {flags}")
        if name == "workloads":  # words of the command line, so always several
            defaults[name] = value.split() if isinstance(value, str) else value
        elif isinstance(value, list):  # a sweep, as commas are on the command line
            defaults[name] = ",".join(str(item) for item in value)
        else:
            defaults[name] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def flags_of_run(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes an interrupted run's settings the command's defaults. Raises ``UserError`` for a file
    that is no such run."""
    if path is None or ctx.resilient_parsing:
        return path
    from lmcache_cli.bench.resume import Interrupted

    defaults = Interrupted.read(path).flags()
    ctx.default_map = {**(ctx.default_map or {}), **defaults, "out": str(path.parent)}
    return path

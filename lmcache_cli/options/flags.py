"""Defines what flags are made of: panels, groups as dataclasses, and files that set them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass
from difflib import get_close_matches
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from lmcache_cli.errors import UserError

_F = TypeVar("_F", bound=Callable[..., Any])

MEASURED = "What is measured"
SWEPT = "Swept (lists with commas)"
CACHE = "The cache"
WORKLOAD = "The workload"
LOAD = "The load"
TRACE_PANEL = "The trace (workload trace)"
REHEARSAL = "Made worse on purpose (to rehearse lmcache check)"


def flag(text: str, panel: str | None = None, *names: str, **more: Any) -> Any:
    """Makes the option of a field ``Annotated[type, flag(...)]``, with its help and its panel. A
    default is shown unless it is None."""
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


def flag_name(field: str) -> str:
    """Returns the flag of a field as it is written on the command line."""
    return "--" + field.replace("_", "-")


def flag_fields(group: type) -> Iterator[tuple[Field[Any], Any]]:
    """Yields the fields of a group that are flags, each with its annotation."""
    hints = get_type_hints(group, include_extras=True)
    for field in fields(group):
        if get_origin(hints[field.name]) is Annotated:
            yield field, hints[field.name]


class PanelCommand(TyperCommand):
    """A command whose help lists its flags by panel, in plain text: boxes take longer to import
    than all else."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panel = getattr(parameter, "rich_help_panel", None) or kind
            panels.setdefault(panel, []).append((record[0], record[1].replace("\\[", "[")))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows, col_max=26)


def flattened(command: _F) -> _F:
    """Makes a command of one whose parameters may be groups: dataclasses whose fields are flags, as
    ``Annotated[type, flag(...)]``. Typer sees each of them as a parameter of its own, and the
    command gets groups that are filled."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[type, list[str]]] = {}
    shown: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        hint = hints[name]
        if not (isinstance(hint, type) and is_dataclass(hint)):
            _name_choices(hint)
            shown.append(parameter.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY))
            continue
        flags = list(flag_fields(hint))
        groups[name] = hint, [field.name for field, _ in flags]
        for field, annotation in flags:
            _name_choices(annotation)
            default = field.default
            if default is None:
                get_args(annotation)[1].show_default = False
            shown.append(
                Parameter(
                    field.name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation
                )
            )

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        made = {
            name: group(**{flag: given.pop(flag) for flag in flags})
            for name, (group, flags) in groups.items()
        }
        return command(**given, **made)

    run.__signature__ = signature(command).replace(  # type: ignore[attr-defined]
        parameters=shown, return_annotation=None
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    del run.__wrapped__
    return cast(_F, run)


def _name_choices(annotation: Any) -> None:
    """Puts the choices of a ``Literal`` at the end of the help: as a metavar, where Typer has them,
    they would leave no space for it."""
    if get_origin(annotation) is not Annotated:
        return
    kind, option = get_args(annotation)[:2]
    if get_origin(kind) is Literal and option.metavar is None:
        option.metavar = "NAME"
        option.help = f"{option.help.rstrip('.')}: {', '.join(get_args(kind))}."


def load_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Makes the file's values the command's defaults. Raises ``UserError`` for a file that can't
    be read, is no mapping, or has a key that is no flag of the command."""
    if path is None:
        return None
    import yaml

    null = "tag:yaml.org,2002:null"

    class Loader(yaml.BaseLoader):
        """Reads values as the words that they would be on the command line, and each key once."""

        yaml_implicit_resolvers = {  # noqa: RUF012  as PyYAML has it
            first: [pair for pair in pairs if pair[0] == null]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        yaml_constructors = {null: lambda loader, node: None}  # noqa: RUF012  likewise

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            made = super().construct_mapping(node, deep)
            seen = set()
            for key, _ in node.value:
                name = str(key.value).replace("-", "_")
                if name in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                    )
                seen.add(name)
            return made

    try:
        values: Any = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: can't be read: {error}") from error
    except yaml.YAMLError as error:
        place, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"line {place.line + 1}: {problem}" if place and problem else str(error)
        where = where.replace("\n", " ")
        raise UserError(f"--config {path}: not valid YAML: {where}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected lines like 'cpu-size: 4GiB'")
    known = {param.name for param in ctx.command.params if param.name}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in known or name == "config":
            flags = sorted(n.replace("_", "-") for n in known - {"config"})
            near = get_close_matches(str(key), flags, 1)
            these = f"did you mean {near[0]}?" if near else f"these are: {', '.join(flags)}"
            raise UserError(f"--config {path}: {key!r} is no flag; {these}")
        words = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(word, str) for word in words):
            raise UserError(f"--config {path}: {key}: write one value, or a list to sweep")
        if name == "workloads":  # words of the command line, so always several
            defaults[name] = value.split() if isinstance(value, str) else value
        elif isinstance(value, list):  # a sweep, as commas are on the command line
            defaults[name] = ",".join(value)
        else:
            defaults[name] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


Json = Annotated[str | None, flag("Write JSON; - for stdout.", metavar="FILE", show_default=False)]
Config = Annotated[
    Path | None,
    flag(
        "YAML file of these flags; flags win.",
        is_eager=True,
        callback=load_config,
        show_default=False,
        metavar="FILE",
    ),
]
VllmArgs = Annotated[
    str | None,
    flag(
        'Further flags of vllm serve, as one argument: "--max-model-len 4096" (vllm).',
        MEASURED,
        metavar="ARGS",
    ),
]
Quiet = Annotated[bool, flag("Show no progress.", None, "--quiet")]

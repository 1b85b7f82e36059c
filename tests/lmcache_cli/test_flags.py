"""Flags come from groups, once each."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from cache_core.plan import PLACEMENTS
from cache_core.policies import ADMISSIONS, POLICIES
from cache_core.transfer.codec import CODECS
from lmcache_cli.bench.plan import MODES
from lmcache_cli.commands.bench import bench
from lmcache_cli.commands.trace import INFO_EXAMPLES
from lmcache_cli.commands.tune import tune
from lmcache_cli.engines.transformers.blend.prompt import ENCODINGS
from lmcache_cli.modes.mode import ENGINES
from lmcache_cli.options.bench import BenchOptions, WorkloadFlags
from lmcache_cli.options.flags import Config, flag, flag_fields, flattened
from lmcache_cli.options.verify import BlendGateFlags
from workloads import WORKLOAD_USES, Settings
from workloads.settings import ORDERS
from workloads.traces import FORMATS


@dataclass(frozen=True)
class Fruit:
    apples: Annotated[int, flag("Apples.", "Fruit")] = 2
    kind: Annotated[str | None, flag("Kind.", "Fruit")] = None
    basket: str = "no flag"


def test_a_group_is_filled_from_its_flags() -> None:
    app = typer.Typer()
    got: list[object] = []

    @app.command()
    @flattened
    def eat(
        fruit: Fruit, quick: Annotated[bool, flag("Quickly.", None, "--quick")] = False
    ) -> None:
        got.append((fruit, quick))

    runner = CliRunner()
    assert runner.invoke(app, ["--apples", "3", "--quick"]).exit_code == 0
    assert runner.invoke(app, ["--kind", "pear"]).exit_code == 0
    assert got == [(Fruit(3), True), (Fruit(2, "pear"), False)]
    shown = runner.invoke(app, ["--help"]).output
    assert "Apples." in shown and "Fruit" in shown and "default: 2" in shown
    assert "None" not in shown and "basket" not in shown


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("apples: 010\nkind: off", Fruit(10, "off")),
        ("kind: 2026-01-01", Fruit(2, "2026-01-01")),
        ("apples:\nkind: 1:30", Fruit(2, "1:30")),
        ("kind: [true, 0x1f, 1e3]", Fruit(2, "true,0x1f,1e3")),
        ("apples: true", "--apples"),
        ("apples: 1e3", "--apples"),
        ("kind: {a: 1}", "kind: write one value, or a list"),
        ("kind: {}", "kind: write one value, or a list"),
        ("kind: [x, ~]", "kind: write one value, or a list"),
        ("kind: [{a: b}, x]", "kind: write one value, or a list"),
        ("? [a, b]\n: 1", "not valid YAML: line 1: found unhashable key"),
        ("apples: !!int three", "--apples"),
        ("is-quick: 1\nis_quick: 2", "line 2: 'is_quick' is there twice"),
        ("apples: 1\nkind: x\napples: 2", "line 3: 'apples' is there twice"),
        ("aples: 1", "'aples' is no flag; did you mean apples?"),
        ("size: 1", "'size' is no flag; these are: apples"),
    ],
)
def test_yaml_holds_the_words_of_the_command_line(text: str, got: object, tmp_path: Path) -> None:
    app = typer.Typer()
    seen: list[Fruit] = []

    @app.command()
    @flattened
    def eat(fruit: Fruit, config: Config = None) -> None:
        seen.append(fruit)

    (tmp_path / "fruit.yaml").write_text(text)
    done = CliRunner().invoke(app, ["--config", str(tmp_path / "fruit.yaml")])
    if isinstance(got, Fruit):
        assert seen == [got]
    else:
        assert not seen and str(got) in f"{done.output}{done.exception}"


def test_bench_and_tune_have_the_workloads_flags() -> None:
    names = {field.name for field, _ in flag_fields(WorkloadFlags)}
    assert names <= set(signature(bench).parameters) & set(signature(tune).parameters)
    assert {field.name for field, _ in flag_fields(BenchOptions)} <= set(
        signature(bench).parameters
    )


def test_every_knob_of_a_workload_is_a_flag() -> None:
    knobs = {name for names in WORKLOAD_USES.values() for name in names}
    assert knobs <= {field.name for field, _ in flag_fields(WorkloadFlags)}
    assert all(hasattr(Settings(), name) for name in knobs)


def choices(group: type, name: str) -> tuple[str, ...]:
    return get_args(get_args(get_type_hints(group, include_extras=True)[name])[0])


def test_a_flags_names_are_those_of_what_it_chooses() -> None:
    assert choices(BenchOptions, "policy") == tuple(POLICIES)
    assert choices(BenchOptions, "codec") == CODECS
    assert choices(BenchOptions, "placement") == PLACEMENTS
    assert choices(BenchOptions, "admission") == ADMISSIONS
    assert choices(BenchOptions, "engine") == tuple(ENGINES)
    assert choices(BenchOptions, "order") == ORDERS
    assert choices(BlendGateFlags, "blend_encoding") == ENCODINGS
    assert set(MODES) == {mode for modes in ENGINES.values() for mode in modes}


def test_the_help_of_traces_names_every_format() -> None:
    said = INFO_EXAMPLES.partition("Formats: ")[2].partition(";")[0].split(", ")
    assert sorted(said) == sorted(FORMATS)

"""A cell that can't be measured says why, and takes no other one with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import transformers

from lmcache_cli.bench.cells import Cell, Refusals, Scenario
from lmcache_cli.bench.measure import ContaminationError, Measured, measure_cells
from lmcache_cli.bench.plan import MODES
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.simulated import SimulatedEngine, SimulatedSession
from lmcache_cli.errors import CellError, CellMissingError, MissingError, UserError
from lmcache_cli.modes.prefix import Prefix
from reports.run_file import read_run
from reports.sample import Sample
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.small_model import save_model
from tests.lmcache_cli.test_measure import SETTINGS, requests
from workloads import Request

pytestmark = pytest.mark.engine

SMALL = ["--passages", "2", "--passage-tokens", "32", "--question-tokens", "24"]
SMALL += ["--system-tokens", "20", "--corpus-passages", "4", "--requests", "3"]
SMALL += ["--output-tokens", "2", "--chunk-tokens", "16", "--cpu-size", "8MiB"]
TIERS = {"cpu": 1 << 30}
CELLS = [
    Cell(0, 0, MODES["off"], CacheSpec(16)),
    Cell(1, 0, MODES["prefix"], CacheSpec(16, TIERS)),
    Cell(2, 0, Prefix("odd"), CacheSpec(32, TIERS)),
]


class Odd(SimulatedEngine):
    """Cells of chunks of 32 tokens fail where the class says, with what it says."""

    where = "open"
    error: Exception = CellError("odd: not on this device")

    def fail(self, spec: CacheSpec, where: str) -> None:
        if spec.chunk_tokens == 32 and where == self.where:
            raise self.error

    def open(self, spec: CacheSpec, max_tokens: int) -> SimulatedSession:
        self.fail(spec, "open")
        session = super().open(spec, max_tokens)
        plain = session.serve
        served = 0

        def ready() -> None:
            self.fail(spec, "ready")

        def serve(requests: Sequence[Request], load: Load) -> Iterator[Sample]:
            nonlocal served
            for sample in plain(requests, load):
                if served == 3:
                    self.fail(spec, "serve")
                served += 1
                yield sample

        session.ready = ready  # type: ignore[method-assign]
        session.serve = serve  # type: ignore[method-assign]
        return session


def run(
    engine: SimulatedEngine, refusals: Refusals | None, load: Load, cells: Sequence[Cell] = CELLS
) -> Measured:
    measured = Measured()
    scenario = Scenario("long-context", SETTINGS)
    measure_cells(
        engine, scenario, requests(engine), cells, load, range(2), measured,
        lambda *_: None, refusals=refusals,
    )  # fmt: skip
    return measured


def counts(measured: Measured) -> list[int]:
    return [sum(s.cell == cell.index for s in measured.samples) for cell in CELLS]


@pytest.mark.parametrize("load", [Load(1), Load(3)])
@pytest.mark.parametrize(
    ("where", "error", "served", "code"),
    [
        ("open", CellError("odd: not on this device"), 0, 2),
        ("open", CellMissingError("odd: not on this device"), 0, 4),
        ("open", MemoryError("odd: not on this device"), 0, 1),
        ("ready", CellError("odd: not on this device"), 0, 2),
        ("ready", MissingError("odd: not on this device"), 0, 4),
        ("serve", CellError("odd: not on this device"), 3, 2),
        ("serve", RuntimeError("odd: not on this device\nmore of it"), 3, 1),
    ],
)
def test_the_other_cells_are_measured(
    where: str, error: Exception, served: int, code: int, load: Load
) -> None:
    engine = Odd()
    engine.where, engine.error = where, error
    said: list[str] = []
    refusals = Refusals(said.append)
    measured = run(engine, refusals, load)
    assert counts(measured) == [12, 12, served]
    assert {cell for cell, _ in measured.finished} == {0, 1}
    assert refusals.exit_code == code
    [refused] = refusals.found.values()
    assert refused.cell == CELLS[2]
    assert refused.reason.endswith("odd: not on this device")
    assert said == [f"odd can't be measured: {refused.reason}"]


def test_without_a_place_for_refusals_the_error_is_raised() -> None:
    """A check of two sides is void without one of them."""
    with pytest.raises(CellError, match="not on this device"):
        run(Odd(), None, Load(1))


def test_a_bad_flag_ends_the_run_as_before() -> None:
    engine = Odd()
    engine.error = UserError("--flag: no")
    with pytest.raises(UserError, match="--flag: no"):
        run(engine, Refusals(lambda _: None), Load(1))


def test_an_engine_that_does_not_start_without_reuse_ends_the_run() -> None:
    engine = Odd()
    engine.where, engine.error = "ready", MissingError("no server")
    odd = Cell(0, 0, MODES["off"], CacheSpec(32))
    with pytest.raises(MissingError, match="no server"):
        run(engine, Refusals(lambda _: None), Load(1), [odd, CELLS[1]])


def test_a_cache_that_was_not_cold_is_no_refusal() -> None:
    engine = Odd()
    engine.where, engine.error = "serve", ContaminationError("was not cold")
    with pytest.raises(ContaminationError):
        run(engine, Refusals(lambda _: None), Load(1))


def test_a_refused_cell_is_not_tried_again() -> None:
    class Counting(Odd):
        opened = 0

        def open(self, spec: CacheSpec, max_tokens: int) -> SimulatedSession:
            self.opened += spec.chunk_tokens == 32
            return super().open(spec, max_tokens)

    engine, refusals = Counting(), Refusals(lambda _: None)
    run(engine, refusals, Load(1))
    run(engine, refusals, Load(1))
    assert engine.opened == 1


@pytest.fixture(scope="module")
def granite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that blend does not know."""
    folder = save_model(tmp_path_factory.mktemp("granite"), "llama")
    config = transformers.GraniteConfig(
        vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_bench_measures_the_rest_and_says_what_it_could_not(granite: Path, tmp_path: Path) -> None:
    flags = ["--model", str(granite), "--reuse", "off,prefix,blend", "--blend-ratio", "0.1,0.2"]
    flags += ["--unverified", "--json", "run.json"]
    done = lmcache("bench", "rag", *SMALL, *flags, cwd=tmp_path)
    assert done.returncode == 2
    reason = f"model {granite}: blend does not know family 'granite'"
    told = f"Not measured: blend (2 cells): {reason}"
    assert "".join(told.split()) in "".join(done.stdout.split()), "lines break anywhere in a path"
    document = json.loads((tmp_path / "run.json").read_text())
    assert [cell["reuse"] for cell in document["cells"]] == ["off", "prefix"]
    assert all(cell["n"] == 3 for cell in document["cells"]) and document["complete"] is True
    assert [(c["reuse"], c["workload"]) for c in document["refused"]] == [("blend", "rag")] * 2
    assert [cell["blend"]["ratio"] for cell in document["refused"]] == [0.1, 0.2]
    assert all(cell["reason"].startswith(reason) for cell in document["refused"])
    assert any(f"blend can't be measured: {reason}" in line for line in document["warnings"])
    # A report of the run file says the same.
    [path] = (tmp_path / "runs").glob("*.parquet")
    assert len(read_run(path)[1]["refused"]) == 2
    again = lmcache("report", str(path), "--format", "json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["refused"] == document["refused"]
    shown = lmcache("report", str(path), cwd=tmp_path)
    assert "Not measured: blend (2 cells)" in shown.stdout


def test_a_model_without_a_certificate_is_measured_without_blend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = save_model(tmp_path / "model", "llama")
    flags = [*SMALL, "--model", str(model), "--reuse", "off,blend", "--json", "-", "--quiet"]
    done = lmcache("bench", "rag", *flags, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    document = json.loads(done.stdout)
    assert [cell["reuse"] for cell in document["cells"]] == ["off"]
    [refused] = document["refused"]
    assert "run: lmcache verify blend" in refused["reason"]

"""``lmcache verify cross-model``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmcache_cli.engines.transformers.cross_model.forward import prefill_over
from lmcache_cli.engines.transformers.cross_model.layers import entries, layer_groups, layers_text
from lmcache_cli.engines.transformers.cross_model.quality_by_layer import SharedPrompt, profile
from lmcache_cli.engines.transformers.engine import TransformersEngine
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.cross_model_world import LAYERS, base_model, fine_tune_of, prompt

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = base_model(tmp_path_factory.mktemp("base"))
    return base, fine_tune_of(base, tmp_path_factory.mktemp("tuned"))


def verify(pair: tuple[Path, Path], cwd: Path, *flags: str) -> dict[str, object]:
    models = ["cross-model", str(pair[0]), "--model", str(pair[1]), "--quiet", "--json", "-"]
    done = lmcache("verify", *models, "--context-tokens", "60,120", *flags, cwd=cwd)
    assert done.returncode == 0, done.stderr + done.stdout
    document: dict[str, object] = json.loads(done.stdout)
    return document


def test_gates_curve_and_single_layers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = verify(pair, tmp_path)
    assert found["schema"] == "lmcache.verify-between/1" and found["passed"] is True
    gates = found["gates"]
    assert isinstance(gates, list) and len(gates) == 3 and all(g["passed"] for g in gates)
    curve = found["curve"]
    assert isinstance(curve, list)
    assert [p["recomputed"] for p in curve] == [0, 1, 1, 2, 3, LAYERS]
    assert curve[0]["kl"] > curve[3]["kl"] > curve[5]["kl"] == 0 and curve[5]["agreement"] == 1
    assert curve[0]["token_layer_share"] < curve[3]["token_layer_share"] < 1
    assert all(p["positions"] == 8 * 16 and p["kl_interval"]["low"] <= p["kl"] for p in curve)
    single = found["single_layers"]
    assert isinstance(single, list) and [p["layer"] for p in single] == list(range(LAYERS))
    assert all(p["kl"] > 0 for p in single)
    # One layer of the base's KV costs less than all of them, and all less than the base itself.
    base_itself = found["base_itself"]
    assert isinstance(base_itself, dict)
    assert max(p["kl"] for p in single) < curve[0]["kl"] < base_itself["kl"]


def test_a_table_by_default(pair: tuple[Path, Path], tmp_path: Path) -> None:
    models = ["cross-model", str(pair[0]), "--model", str(pair[1]), "--quiet"]
    few = ["--context-tokens", "60", "--output-tokens", "2", "--recompute-layers", "1-2"]
    done = lmcache("verify", *models, *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the base itself" in done.stdout and "1-2" in done.stdout


def test_equal_weights_lose_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    same = fine_tune_of(pair[0], tmp_path / "same", moved=0)
    found = verify((pair[0], same), tmp_path)
    assert found["passed"] is True
    curve = found["curve"]
    assert isinstance(curve, list)
    assert all(p["kl"] < 1e-9 and p["agreement"] == 1 for p in curve)


def test_a_model_is_no_base_of_itself(pair: tuple[Path, Path], tmp_path: Path) -> None:
    models = ["cross-model", str(pair[0]), "--model", str(pair[0]), "--quiet"]
    done = lmcache("verify", *models, cwd=tmp_path)
    assert done.returncode == 2 and "is the model itself" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_gates_can_fail(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that forgets the topmost chosen layer is caught by both."""

    def forgetful(*arguments: object) -> object:
        *others, groups, hidden = arguments
        assert isinstance(groups, tuple)
        if groups and len(groups[-1]) > 1:
            groups = (*groups[:-1], groups[-1][:-1])
        return prefill_over(*others, groups, hidden)  # type: ignore[arg-type,call-arg]

    monkeypatch.setattr(
        "lmcache_cli.engines.transformers.cross_model.quality_by_layer.prefill_over", forgetful
    )
    engine = TransformersEngine(str(pair[1]))
    base = engine.shared_base(str(pair[0]))
    found = profile(engine, base, [(prompt(), 80)], {"0-1": (range(2),)}, layers=False)
    assert found.apart > 0 and not found.unread


def test_one_layer_of_the_bases_kv(pair: tuple[Path, Path]) -> None:
    engine = TransformersEngine(str(pair[1]))
    one = SharedPrompt(engine, engine.shared_base(str(pair[0])), prompt(), 80)
    top = LAYERS - 1
    # Computing all layers below the top one leaves the top one's KV to the base.
    alone, rest = one.over_one_layer(top), one.over_base((range(top),))
    assert alone.quality.kl == pytest.approx(rest.quality.kl, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("none", ()),
        ("0%", ()),
        ("all", (range(30),)),
        ("10%", (range(3),)),
        ("11%", (range(4),)),
        ("0-3+12", (range(4), range(12, 13))),
        ("5+3-4+9", (range(3, 6), range(9, 10))),
        ("29", (range(29, 30),)),
    ],
)
def test_sets_of_layers(text: str, groups: tuple[range, ...]) -> None:
    assert layer_groups(text, 30) == groups
    assert layer_groups(layers_text(groups), 30) == groups
    assert entries(groups) == tuple(g.start for g in groups if g.start)


@pytest.mark.parametrize("text", ["", "x", "-1", "3-1", "30", "101%", "1,2", "1++2"])
def test_what_is_no_set_of_layers(text: str) -> None:
    with pytest.raises(ValueError, match=r"layer|ends|more"):
        layer_groups(text, 30)

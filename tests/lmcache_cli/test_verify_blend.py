"""``lmcache verify blend``."""

from __future__ import annotations

import io
import json
from itertools import combinations
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from rich.console import Console

from cache_core.blend.certificate import BlendTerms, read_certificate
from cache_core.blend.seen import LEAST_SEEN, sighting_worth
from lmcache_cli.bench.progress import BenchProgress
from lmcache_cli.engines.engine import Load
from lmcache_cli.errors import UserError
from lmcache_cli.modes.blend import lessons
from lmcache_cli.options.verify import BlendGateFlags
from lmcache_cli.verify.blend import (
    BlendTrial,
    _learn,
    _prompts,
    _strangers,
    quality_gates,
)
from lmcache_cli.verify.gates import QUESTION_TOKENS
from tests.lmcache_cli.blend_world import ROPES, blend_session, small_engine
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.small_model import save_model
from workloads import GeneratedCorpus, Request

pytestmark = pytest.mark.engine


def verify(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    flags = ["blend", "--quiet", *arguments]
    return lmcache("verify", *flags, cwd=cwd, COLUMNS="100", XDG_CACHE_HOME=str(cwd / "cache"))


def test_gates_curve_and_verdict(tmp_path: Path) -> None:
    changes = {"rope_parameters": ROPES["yarn"], "initializer_range": 0.2}
    model = save_model(tmp_path / "model", "qwen3", num_hidden_layers=4, **changes)
    place = tmp_path / "cache" / "lmcache-bench" / "blend"
    flags = ["--model", str(model), "--passage-tokens", "32", "--json", "-"]
    done = verify(*flags, "--blend-ratio", "0.5", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["schema"] == "lmcache.verify-blend/2"
    exact, quality = found["gates"][:4], found["gates"][4:]
    assert all(gate["passed"] for gate in exact), exact
    curve = {point["ratio"]: point["kl"] for point in found["curve"]}
    assert list(curve) == [0, 0.25, 0.5, 1] and curve[0] > curve[0.5] > curve[1] == 0
    # A BOS, 4 passages of 32 and a question; what stands right behind the BOS is exact.
    length = 1 + 4 * 32 + QUESTION_TOKENS
    work = [QUESTION_TOKENS, QUESTION_TOKENS + 24, QUESTION_TOKENS + 48, length]
    assert [point["token_layer_share"] for point in found["curve"]] == [n / length for n in work]
    failed = [g["name"] for g in quality if not g["passed"] and not g["unsure"]]
    unsure = [g["name"] for g in quality if g["unsure"]]
    verdict = "failed" if failed else "inconclusive" if unsure else "passed"
    assert found["verdict"] == verdict
    assert done.returncode == {"failed": 1, "inconclusive": 3, "passed": 0}[verdict]
    [path] = place.iterdir()
    assert found["certificate"] == str(path)
    certificate = read_certificate(path)
    assert (certificate.failed, certificate.unsure) == (tuple(failed), tuple(unsure))
    assert certificate.terms == BlendTerms(0.5) and certificate.details["curve"] == found["curve"]


@pytest.mark.parametrize(("count", "size", "room"), [(9, 4, None), (5, 3, 70), (2, 2, None)])
def test_lessons_show_every_passage_behind_others(count: int, size: int, room: int | None) -> None:
    lengths = [20 + 3 * number for number in range(count)]
    seen = [0.0] * count
    for order in lessons(lengths, size, room):
        assert len(set(order)) == len(order) <= size
        assert sum(lengths[place] for place in order) <= (room or 1000)
        for at, place in enumerate(order):
            before = sum(lengths[other] for other in order[:at])
            seen[place] += sighting_worth(before, lengths[place])
    assert min(seen) >= LEAST_SEEN


def test_a_passage_behind_which_no_other_fits_is_not_waited_for() -> None:
    assert list(lessons([100, 200], 2, 250)) == [] == list(lessons([100], 4))
    assert all(2 not in order for order in lessons([10, 10, 100], 3, 105))


def test_all_passages_are_known_after_learning(tmp_path: Path) -> None:
    engine = small_engine(tmp_path)
    session = blend_session(engine)
    tried, teaching = _prompts(engine, GeneratedCorpus(0), 16, BlendGateFlags(prompts=16))
    progress = BenchProgress(Console(file=io.StringIO()), quiet=True)
    _learn(session, teaching, progress)
    assert len(teaching) < 24
    for one in tried:
        [sample] = session.serve([one.request], Load())
        assert sample.hits == 1 + 4 * 16
    with pytest.raises(RuntimeError, match="of 1 requests were not learnt"):
        _learn(blend_session(engine), teaching[:1], progress)


def test_no_two_passages_of_a_prompt_were_seen_together(tmp_path: Path) -> None:
    """Else what is reused would have been computed beside what it is tried with."""
    tried, teaching = _prompts(
        small_engine(tmp_path), GeneratedCorpus(0), 16, BlendGateFlags(prompts=20)
    )
    met = [passages(request) for request in teaching]
    assert len(tried) == 20 and all(len(some) > 1 for some in met)
    for one in tried:
        assert all(len(passages(one.request) & some) <= 1 for some in met)


def passages(request: Request) -> set[bytes]:
    return {request.token_ids[part.start : part.end].tobytes() for part in request.segments[1:-1]}


def trials(
    kl: list[float], naive: list[float], worse: float = 0.0
) -> list[dict[float, BlendTrial]]:
    return [
        {0.0: BlendTrial(n, 0.5, 0.5, 0.1), 0.14: BlendTrial(k, 0.5 - worse, 0.5, 0.2)}
        for k, n in zip(kl, naive, strict=True)
    ]


@pytest.mark.parametrize(
    ("kl", "passed", "unsure"),
    [
        ([0.3] * 16, True, False),
        ([0.59] * 16, True, False),
        ([0.61] * 16, False, False),
        ([0.2] * 8 + [0.9] * 8, False, True),
    ],
)
def test_the_whole_interval_has_to_hold(kl: list[float], passed: bool, unsure: bool) -> None:
    gate, top = quality_gates(trials(kl, [1.0] * 16), 0.14)
    assert (gate.passed, gate.unsure) == (passed, unsure)
    assert top.passed and not top.unsure


def test_a_point_of_top_1_is_the_most_that_may_be_lost() -> None:
    def top(worse: list[float]) -> tuple[bool, bool]:
        each = [trials([0.1], [1.0], w)[0] for w in worse]
        gate = quality_gates(each, 0.14)[1]
        return gate.passed, gate.unsure

    assert top([0.009] * 16) == (True, False)
    assert top([0.02] * 16) == (False, False)
    assert top([0.1, -0.06] * 8) == (False, True)


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    done = verify("--prompts", "4", cwd=tmp_path)
    assert done.returncode == 2 and "at least 16" in done.stderr


def test_a_model_that_cannot_be_blended_is_refused(tmp_path: Path) -> None:
    done = verify("--model", str(tmp_path / "none"), cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_pool_whose_passages_have_all_met_ends_in_a_word() -> None:
    rng = np.random.default_rng(0)
    met = {frozenset(pair) for pair in combinations(range(9), 2)} - {frozenset((0, 1))}
    with pytest.raises(UserError, match="--seed: of 9 passages no 4 were found"):
        _strangers(9, met, rng)
    four = {frozenset(pair) for pair in combinations((2, 5, 6, 8), 2)}
    assert sorted(_strangers(9, met - four, rng).tolist()) == [2, 5, 6, 8]

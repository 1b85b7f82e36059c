"""``lmcache verify blend``."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cache_core.blend.certificate import read_certificate
from lmcache_cli.verify.blend_settings import SettingTrial, choose_setting
from tests.lmcache_cli.blend_world import ROPES
from tests.lmcache_cli.command_line import lmcache
from tests.lmcache_cli.small_model import save_model

pytestmark = pytest.mark.engine


def verify(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    flags = ["blend", "--quiet", *arguments]
    return lmcache("verify", *flags, cwd=cwd, COLUMNS="100", XDG_CACHE_HOME=str(cwd / "cache"))


@pytest.mark.parametrize("rope", ["llama3", "yarn"])
def test_gates_and_curve(rope: str, tmp_path: Path) -> None:
    changes = {"rope_parameters": ROPES[rope], "initializer_range": 0.2}
    model = save_model(tmp_path / "model", "qwen3", num_hidden_layers=4, **changes)
    place = tmp_path / "cache" / "lmcache-bench" / "blend"
    done = verify("--model", str(model), "--passage-tokens", "32", "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["schema"] == "lmcache.verify-blend/1"
    assert found["passed"] and all(gate["passed"] for gate in found["gates"])
    curve = {point["ratio"]: point["kl"] for point in found["curve"]}
    assert curve[0.0] > curve[0.3] > curve[1.0] == 0
    [path] = place.iterdir()
    assert found["certificate"] == str(path)
    certificate = read_certificate(path)
    assert not certificate.failed and certificate.details["curve"] == found["curve"]


def test_calibrated_settings_are_kept_and_used(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", "llama", num_hidden_layers=6, initializer_range=0.2)
    flags = ["--model", str(model), "--passage-tokens", "32", "--out", "p.json"]
    more = ["--calibrate", "--calibration-prompts", "4"]
    done = verify(*flags, *more, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)["calibration"]
    assert found["prompts"] == {"calibration": 2, "held_out": 2}
    # Both encodings, three ratios; before, each with the layers 1 and 2.
    assert len(found["held_out"]) == 2 * 3 and len(found["calibration"]) == 2 * 3 * 2
    assert read_certificate(tmp_path / "p.json").calibration == found
    for trial in found["held_out"]:
        same = [
            t
            for t in found["calibration"]
            if (t["encoding"], t["ratio"]) == (trial["encoding"], trial["ratio"])
        ]
        assert trial["check_layer"] == min(same, key=lambda t: t["kl"])["check_layer"]
    # Verified again without --calibrate, they stay.
    assert verify(*flags, cwd=tmp_path).returncode == 0
    assert read_certificate(tmp_path / "p.json").calibration == found


def test_the_least_work_within_the_bound_is_chosen() -> None:
    def trial(work: float, kl: float) -> SettingTrial:
        return SettingTrial("system", 0.1, 1, work, kl, None, None, 1.0)

    trials = [trial(0.5, 0.010), trial(0.3, 0.027), trial(0.1, 0.031)]
    assert choose_setting(trials, naive=0.11).work == 0.3  # up to 0.01 + 0.2 * 0.1
    assert choose_setting(trials, naive=0.12).work == 0.1
    assert (
        choose_setting(trials, naive=0.0).work == 0.5
    )  # where naive reuse is best, nothing is given up


def test_a_model_that_cannot_be_blended_is_refused(tmp_path: Path) -> None:
    done = verify("--model", str(tmp_path / "none"), cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1

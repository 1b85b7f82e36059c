"""Changes of weights in memory are noticed, whoever made them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cache_core.adapters.vllm.worker import weights_watch as watch_module
from cache_core.adapters.vllm.worker.weights_watch import WeightsWatch, model_in_use


def model(layers: int = 3) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(64, 48) for _ in range(layers)))


def copied(given: Any) -> None:
    for parameter in given.parameters():
        parameter.data.copy_(parameter.data + 0.001)


def in_inference_mode(given: Any) -> None:
    with torch.inference_mode():
        given[1].weight.mul_(1.01)


def through_a_pointer(given: Any) -> None:
    given[2].bias.data.numpy()[:] += 1


def replaced(given: Any) -> None:
    given[0].weight = torch.nn.Parameter(torch.zeros(48, 64))


def other_memory(given: Any) -> None:
    given[0].weight.data = torch.ones(48, 64)


def loaded(given: Any) -> None:
    given.load_state_dict({k: v + 1 for k, v in given.state_dict().items()})


@pytest.mark.parametrize(
    "change", [copied, in_inference_mode, through_a_pointer, replaced, other_memory, loaded]
)
def test_a_change_is_told_once(change: Callable[[torch.nn.Module], None]) -> None:
    given = model()
    watch = WeightsWatch(given)
    assert [watch.look(), watch.look()] == [False, False]
    change(given)
    assert [watch.look(), watch.look()] == [True, False]


def test_running_a_model_changes_nothing() -> None:
    given = model(1)
    watch = WeightsWatch(given)
    given(torch.zeros(2, 64))
    assert not watch.look()


def test_a_parameter_that_was_packed_away_again_is_a_change() -> None:
    given = model()

    def pack() -> None:
        given[1].weight = torch.nn.Parameter(torch.empty(0))

    pack()
    watch = WeightsWatch(given)
    assert not watch.look()
    pack()
    assert [watch.look(), watch.look()] == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.float64])
def test_any_kind_of_number_in_any_layout_is_read(dtype: torch.dtype) -> None:
    given = torch.nn.Module()
    whole = torch.zeros(40, 64).to(dtype)
    given.view = torch.nn.Parameter(whole[8:].t(), requires_grad=False)
    given.other = torch.nn.Parameter(torch.full((5,), float("nan")), requires_grad=False)
    watch = WeightsWatch(given)
    assert not watch.look()  # a NaN is no change
    whole[8:].view(torch.uint8).fill_(1)
    assert watch.look()


def test_large_models_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "_MOST_PARAMETERS", 8)
    given = model(20)
    watch = WeightsWatch(given)
    assert len(watch) == 8
    copied(given)
    assert watch.look()


class Connector:
    """As vLLM calls one."""

    def register_kv_caches(self) -> torch.nn.Module | None:
        return model_in_use()


def test_the_model_of_whoever_registers_is_found() -> None:
    class Runner:
        model: torch.nn.Module = model()

        def get_model(self) -> torch.nn.Module:
            return self.model

        def initialize(self) -> torch.nn.Module | None:
            return Connector().register_kv_caches()

    assert Runner().initialize() is Runner.model


def test_without_a_runner_there_is_no_model() -> None:
    assert Connector().register_kv_caches() is None

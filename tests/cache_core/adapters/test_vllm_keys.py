"""What a key of the connector holds: all that vLLM's KV depends on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cache_core.adapters.vllm import identity as lora_module
from cache_core.adapters.vllm.identity import Adapters, Hashers, Unsupported, namespace, unproven
from cache_core.keys import canonical, config_digest
from cache_core.layout import KVLayout
from cache_core.weights import FileDigests

TOKENS = list(range(64))
LAYOUT = KVLayout(4, 2, 64, "float32", 32)
ROPE = {"rope_theta": 1e4, "rope_type": "default"}


def config(model: Any = "org/name", **given: Any) -> Any:
    load = {"load_format": given.pop("load_format", "auto")}
    load["model_loader_extra_config"] = given.pop("loader", {})
    cache = {"cache_dtype": "auto", "calculate_kv_scales": given.pop("scales", False)}
    lora = SimpleNamespace(lora_dtype=given.pop("lora_dtype", "auto"), target_modules=None)
    text = SimpleNamespace(rope_parameters=given.pop("rope", ROPE))
    hf = SimpleNamespace(_commit_hash=given.pop("commit", "c0"), rms_norm_eps=given.pop("eps", 1))
    fields: dict[str, Any] = dict(dtype=torch.float32, revision=None, quantization=None)
    fields |= dict(hf_text_config=text, hf_config=hf, hf_overrides={}, tokenizer="t")
    fields |= {"model": str(model), **given}
    return SimpleNamespace(
        parallel_config=SimpleNamespace(tensor_parallel_size=1, pipeline_parallel_size=1),
        cache_config=SimpleNamespace(**cache),
        load_config=SimpleNamespace(**load),
        lora_config=lora,
        model_config=SimpleNamespace(**fields),
    )


def request(salt: str | None = None, lora: Any = None) -> Any:
    return SimpleNamespace(cache_salt=salt, lora_request=lora)


def adapter(name: str, number: int, path: Path | str, **given: Any) -> Any:
    return SimpleNamespace(lora_name=name, lora_int_id=number, lora_path=str(path), **given)


def first(hashers: Hashers, asked: Any) -> bytes:
    return hashers.of(asked).keys(TOKENS).prefix[0]


def key(given: Any, **named: Any) -> bytes:
    return first(Hashers(namespace(given, LAYOUT, "f", "", **named)), request())


def folder(path: Path, weights: bytes = b"A", alpha: int = 16) -> Path:
    path.mkdir(exist_ok=True)
    (path / "adapter_model.safetensors").write_bytes(weights * 1000)
    (path / "adapter_config.json").write_text(json.dumps({"lora_alpha": alpha}))
    return path


@pytest.fixture
def hashers() -> Hashers:
    return Hashers(namespace(config(), LAYOUT, "f", ""))


def test_equal_settings_have_equal_keys() -> None:
    assert key(config()) == key(config())


LONG = {"rope_type": "longrope", "factor": 2.0}


@pytest.mark.parametrize(
    "other",
    [
        dict(commit="c1"),
        dict(revision="main"),
        dict(eps=2),
        dict(load_format="dummy"),
        dict(loader={"distributed": True}),
        dict(quantization="fp8"),
        dict(rope=ROPE | {"rope_theta": 5e5}),
        dict(hf_overrides={"a": 1}),
        dict(hf_overrides=lambda given: given),
        dict(dtype=torch.bfloat16),
        dict(lora_dtype="float16"),
        dict(model_weights="s3://a"),
        dict(hf_config_path="elsewhere"),
        dict(code_revision="main"),
        dict(model_impl="transformers"),
        dict(tokenizer="u"),
        dict(multimodal_config=SimpleNamespace(mm_processor_kwargs={"size": 1})),
    ],
    ids=lambda other: next(iter(other)),
)
def test_every_setting_of_the_model_counts(other: dict[str, Any]) -> None:
    assert key(config(**other)) != key(config())


def test_what_the_connector_adds_counts() -> None:
    assert len({key(config()), key(config(), codec="fp8"), key(config(), weights_id="w2")}) == 3


def test_two_functions_that_override_differ() -> None:
    def closed(value: int) -> Callable[[Any], Any]:
        return lambda given: (given, value)

    functions = [lambda given: given, lambda given: None, closed(1), closed(2)]
    assert len({key(config(hf_overrides=one)) for one in functions}) == 4
    assert key(config(hf_overrides=closed(1))) == key(config(hf_overrides=closed(1)))


def test_the_longest_prompt_counts_where_rope_depends_on_it() -> None:
    def of(rope: Any, length: int) -> bytes:
        return key(config(rope=rope, max_model_len=length))

    assert of(ROPE, 1024) == of(ROPE, 2048)
    assert of(LONG, 1024) != of(LONG, 2048)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "consolidated.00.pth", "sub/model.bin", "m.py"]
)
def test_every_file_of_a_folder_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.gguf").write_bytes(b"rest")
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"A" * 100)
    before = key(config(tmp_path))
    path.write_bytes(b"B" * 100)
    assert key(config(tmp_path)) != before


def test_a_single_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"A" * 100)
    before = key(config(path))
    path.write_bytes(b"B" * 100)
    assert key(config(path)) != before


def test_a_folder_that_can_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(FileDigests, "of", fails)
    with pytest.raises(Unsupported, match=f"{tmp_path} can't be read: Permission denied"):
        key(config(tmp_path))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(), ""),
        (dict(load_format="safetensors"), ""),
        (dict(commit=None), "the commit of org/name is not known"),
        (dict(load_format="dummy"), "'dummy' does not read them"),
        (dict(load_format="tensorizer"), "'tensorizer' does not read them"),
        (dict(model_weights="s3://bucket"), "they come from s3://bucket"),
        (dict(scales=True), "calculate_kv_scales"),
        (dict(hf_config_path="x"), "only that of its configuration"),
        (dict(quantization="gguf"), "only that of its configuration"),
    ],
)
def test_weights_that_nothing_names_are_told(given: dict[str, Any], words: str) -> None:
    told = unproven(config(**given))
    assert words in told
    assert bool(words) == bool(told)


def test_files_prove_weights_whatever_else_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"A")
    assert unproven(config(tmp_path, commit=None)) == ""
    assert unproven(config(tmp_path, commit=None, load_format="dummy")) != ""


def test_tenants_share_nothing(hashers: Hashers) -> None:
    assert first(hashers, request("a")) == first(hashers, request("a"))
    assert len({first(hashers, request(salt)) for salt in (None, "a", "b")}) == 3


def test_hashers_are_bounded_and_come_back_equal(hashers: Hashers) -> None:
    before = first(hashers, request("0"))
    for number in range(1000):
        hashers.of(request(str(number)))
    assert len(hashers._known) <= 256
    assert first(hashers, request("0")) == before


def test_a_generation_is_found_by_nobody_else(hashers: Hashers) -> None:
    other = Hashers(namespace(config(), LAYOUT, "f", ""))
    keys = [first(hashers, request("a"))]
    for _ in range(2):
        hashers.renew()
        keys.append(first(hashers, request("a")))
    other.renew()
    keys.append(first(other, request("a")))
    assert len(set(keys)) == 4


# Adapters.


def test_bytes_of_an_adapter_count_and_not_its_name(hashers: Hashers, tmp_path: Path) -> None:
    one, same = folder(tmp_path / "one"), folder(tmp_path / "same")
    two, alpha = folder(tmp_path / "two", b"B"), folder(tmp_path / "alpha", alpha=64)
    asked = [adapter("a", 1, one), adapter("b", 2, same), adapter("a", 3, two)]
    asked += [adapter("a", 4, alpha), adapter("a", 5, one, is_3d_lora_weight=True)]
    keys = [first(hashers, request(None, given)) for given in asked]
    assert keys[0] == keys[1]
    assert len({*keys, first(hashers, request())}) == 5


def test_an_adapter_loaded_in_place_is_another(hashers: Hashers, tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    before = first(hashers, request(None, adapter("a", 1, path)))
    folder(path, b"B")
    again = request(None, adapter("a", 1, path, load_inplace=True))
    assert hashers.adapter(again).unknown == ""
    assert first(hashers, again) != before
    # It is what vLLM has from now on.
    assert first(hashers, request(None, adapter("a", 1, path))) == first(hashers, again)


def test_the_same_folder_under_a_new_id_is_read_again(hashers: Hashers, tmp_path: Path) -> None:
    path = folder(tmp_path / "a")
    before = first(hashers, request(None, adapter("a", 1, path)))
    folder(path, alpha=64)
    assert first(hashers, request(None, adapter("a", 2, path))) != before


def test_files_that_changed_under_a_loaded_adapter_leave_it_uncached(tmp_path: Path) -> None:
    adapters = Adapters()
    path = folder(tmp_path / "a")
    before = adapters.of(adapter("a", 1, path))
    folder(path, b"B")
    assert adapters.of(adapter("a", 1, path)).unknown == "adapter_changed"
    folder(path)  # the bytes that vLLM has
    assert adapters.of(adapter("a", 1, path)) == before


def test_a_name_that_was_anothers_is_told_whatever_its_id(tmp_path: Path) -> None:
    adapters = Adapters()
    path = folder(tmp_path / "a")
    assert not adapters.of(adapter("a", 1, path)).renamed
    folder(path, b"B")
    # Unloaded and loaded again, an adapter has a new id; vLLM's prefix cache knows the name.
    assert adapters.of(adapter("a", 2, path)).renamed
    assert not adapters.of(adapter("b", 3, path)).renamed
    folder(path)
    assert adapters.of(adapter("a", 4, path)).renamed


@pytest.mark.parametrize("path", ["in-memory", "no/adapter", "/nowhere", "not an id: ?"])
def test_an_adapter_without_files_shares_nothing(hashers: Hashers, path: str) -> None:
    asked = request(None, adapter("1", 1, path))
    assert hashers.adapter(asked).unknown == "adapter_unknown"
    assert first(hashers, asked) != first(hashers, asked)
    assert len(hashers._known) == 0


def test_tensors_count_for_more_than_a_path_that_is_there(tmp_path: Path) -> None:
    given = adapter("1", 1, folder(tmp_path / "a"), lora_tensors={"w": torch.zeros(1)})
    assert Adapters().of(given).unknown == "adapter_unknown"


def test_a_large_adapter_is_read_once_and_not_while_it_may_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_module, "_QUICK_BYTES", 100)
    settled = False
    monkeypatch.setattr(lora_module, "settled", lambda found: settled)
    read: list[Any] = []

    class Counted(FileDigests):
        def of(self, files: Any, root: Path) -> str:
            read.append(root)
            return super().of(files, root)

    adapters = Adapters(Counted(None))
    asked = adapter("a", 1, folder(tmp_path / "a"))
    assert adapters.of(asked).unknown == "adapter_just_written"
    assert read == []
    settled = True
    known = adapters.of(asked)
    assert known.unknown == ""
    assert adapters.of(asked) == known
    settled = False
    folder(tmp_path / "a", b"B")
    assert adapters.of(asked).unknown == "adapter_changed"


def test_a_change_before_it_was_read_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_module, "_QUICK_BYTES", 100)
    settled = False
    monkeypatch.setattr(lora_module, "settled", lambda found: settled)
    adapters = Adapters()
    asked = adapter("a", 1, folder(tmp_path / "a"))
    assert adapters.of(asked).unknown == "adapter_just_written"
    folder(tmp_path / "a", b"BB")  # vLLM has the other bytes
    settled = True
    assert adapters.of(asked).unknown == "adapter_changed"


def test_an_adapter_of_a_hub_is_that_which_was_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder(tmp_path / "snapshot")
    fetched = str(path / "adapter_config.json")
    monkeypatch.setattr(
        lora_module, "try_to_load_from_cache", lambda name, file: {"org/a": fetched}.get(name)
    )
    adapters = Adapters()
    local = adapters.of(adapter("a", 1, path))
    assert adapters.of(adapter("b", 2, "org/a")) == local
    assert adapters.of(adapter("c", 3, "org/b")).unknown == "adapter_unknown"


def test_adapters_are_forgotten_beyond_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora_module, "_MOST_SEEN", 3)
    adapters = Adapters()
    path = folder(tmp_path / "a")
    for number in range(1, 9):
        adapters.of(adapter("a", number, path))
    assert list(adapters._seen) == [6, 7, 8]


# Settings as text.


def test_order_does_not_count_and_kinds_do() -> None:
    assert canonical({"a": 1, "b": {2, 3}}) == canonical({"b": {3, 2}, "a": 1})
    assert canonical([1, 2]) != canonical([2, 1])
    assert canonical("1") != canonical(1)


def test_where_a_configuration_came_from_does_not_count() -> None:
    one = SimpleNamespace(eps=1, _name_or_path="a", _commit_hash="x", transformers_version="5")
    two = SimpleNamespace(eps=1, _name_or_path="b", _commit_hash="y", transformers_version="6")
    assert config_digest(one) == config_digest(two)
    assert config_digest(one) != config_digest(SimpleNamespace(eps=2))
    assert config_digest(None) == ""

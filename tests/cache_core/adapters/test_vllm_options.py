"""Settings of the connector."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cache_core.adapters.vllm.config import ConnectorOptions

ROOT = Path(__file__).parents[3]
CONFIG = re.compile(r"--kv-transfer-config '(\{.*?\})'", re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/vllm-connector.md"])
def test_what_the_pages_tell_to_paste_is_understood(page: str) -> None:
    pasted = [text for text in CONFIG.findall((ROOT / page).read_text()) if "..." not in text]
    assert pasted
    for text in pasted:
        given = json.loads(text)
        assert given["kv_connector_module_path"] == "cache_core.adapters.vllm"
        assert ConnectorOptions.parse(given["kv_connector_extra_config"]).tier_names


def test_sizes_and_defaults() -> None:
    options = ConnectorOptions.parse(
        {"cpu_size": "512MiB", "disk_size": 1000, "disk_path": "/tmp/x", "remote": "redis://a:1"}
    )
    assert (options.cpu_size, options.disk_size) == (512 << 20, 1000)
    assert options.tier_names == ("cpu", "disk", "remote")
    assert ConnectorOptions.parse({}).tier_names == ("cpu",)


@pytest.mark.parametrize(
    ("given", "taken"),
    [({}, 256), ({"prefetch_size": 0}, 0), ({"prefetch_size": 900}, 512), ({"codec": "int8"}, 0)],
)
def test_a_prefetch_takes_half_of_dram_at_most(given: dict[str, Any], taken: int) -> None:
    assert ConnectorOptions.parse({"cpu_size": 1024, **given}).prefetch_bytes == taken


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"cpu": 1}, "cpu is not known; these are: chunk_tokens"),
        ({"cpu_size": "12XB"}, "cpu_size '12XB' is not a size"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0; it must be a whole number"),
        ({"chunk_tokens": True}, "chunk_tokens is True"),
        ({"disk_size": "1GiB"}, "disk_size needs disk_path"),
        ({"cpu_size": 0}, "nothing could be kept"),
        ({"policy": "mru"}, "policy 'mru' is not known; use one of lru"),
        ({"load": "soon"}, "load 'soon' is not known"),
        ({"wait_s": -1}, "wait_s is -1"),
        ({"layerwise": "yes"}, "layerwise is 'yes'; it must be true or false"),
        ({"salt": 5}, "salt is 5; it must be text"),
        ({"codec": "fp8", "prefetch_size": 1}, "prefetch_size needs codec none"),
    ],
)
def test_what_makes_no_sense_is_named(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match="kv_connector_extra_config: ") as caught:
        ConnectorOptions.parse(given)
    assert text in str(caught.value)

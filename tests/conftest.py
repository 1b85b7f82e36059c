"""What holds for every test: no network, no colours, no verdict from the clock, and which files
come first where several processes share them."""

from __future__ import annotations

import os
import signal
from operator import itemgetter

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports transformers: a test that asks a hub is a test that fails elsewhere.
os.environ["HF_HUB_OFFLINE"] = "1"
# Several test processes whose models take all cores each wait for one another more than they work:
# three times the CPU time.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Snapshots of what a terminal shows must not depend on whose terminal runs them.
for name in ("FORCE_COLOR", "PY_COLORS", "COLUMNS", "LINES"):
    os.environ.pop(name, None)

# Started in the background of a script, a process ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes slow examples, not wrong ones.
settings.register_profile(
    "lmcache", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("lmcache")

# Groups of tests that start models and servers take minutes; what comes last should be short.
LONGEST_FIRST = (
    "vllm engines",
    "vllm servers",
    "tests/lmcache_cli/test_check_command.py",
    "tests/cache_core/test_kernels.py",
    "tests/lmcache_cli/test_bench_tiers.py",
    "tests/lmcache_cli/test_verify_between.py",
    "tests/lmcache_cli/test_engine_pages.py",
    "tests/lmcache_cli/test_resume.py",
    "tests/cache_core/adapters/test_vllm_generations.py",
    "tests/cache_core/adapters/test_vllm_identity.py",
    "tests/cache_core/adapters/test_vllm_wiring.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``--dist loadfile --no-loadscope-reorder``: files that take minutes come first."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    places = []
    for item in items:
        marker = item.get_closest_marker("xdist_group")
        name = str(marker.args[0]) if marker else item.nodeid.partition("::")[0]
        places.append(place.get(name, len(place)))
    items[:] = [item for _, item in sorted(zip(places, items, strict=True), key=itemgetter(0))]

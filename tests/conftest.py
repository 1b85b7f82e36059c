"""What holds for every test: no network, no colours, no verdict from the clock, and which files
come first where several processes share them."""

from __future__ import annotations

import os
import signal

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

# Files whose tests start models and servers take minutes; what comes last should be short.
LONGEST_FIRST = (
    "tests/cache_core/adapters/test_vllm_connector.py",
    "tests/lmcache_cli/test_engine_vllm.py",
    "tests/benchmarks/test_vllm_simulation.py",
    "tests/cache_core/adapters/test_vllm_weights.py",
    "tests/cache_core/adapters/test_vllm_blend.py",
    "tests/lmcache_cli/test_trace_record.py",
    "tests/lmcache_cli/test_engine_openai.py",
    "tests/lmcache_cli/test_check_command.py",
    "tests/cache_core/test_kernels.py",
    "tests/lmcache_cli/test_bench_tiers.py",
    "tests/lmcache_cli/test_verify_cross_model.py",
    "tests/benchmarks/test_vllm_scheduler.py",
    "tests/lmcache_cli/test_engine_pages.py",
    "tests/lmcache_cli/test_resume.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For ``--dist loadfile --no-loadscope-reorder``: files that take minutes come first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = {name: number for number, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))

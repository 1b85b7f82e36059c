"""What holds for every test: no network, no colours, and no verdict from the clock."""

from __future__ import annotations

import os
import signal

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

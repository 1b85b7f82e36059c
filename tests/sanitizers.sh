#!/usr/bin/env bash
# Builds the native module with AddressSanitizer and UndefinedBehaviorSanitizer in a folder of its
# own and runs the tests of its verbs against that build: all layouts, all verbs, all bad arguments;
# the CUDA code too, on emulated GPUs. Exits with pytest's status. PYTHON names the interpreter (default .venv/bin/python); arguments
# replace the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-.venv/bin/python}")
[[ $python == /* ]] || python=$PWD/$python
work=$(mktemp -d)
trap 'cat "$work"/report* >&2 2>/dev/null || true; rm -rf "$work"' EXIT
PATH=$(dirname "$python"):$PATH cmake -G Ninja -S . -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$python" -DLMCACHE_SANITIZE=ON -DLMCACHE_CUDA=OFF >/dev/null
PATH=$(dirname "$python"):$PATH cmake --build "$work/build" --target _native >/dev/null
cp -r cache_core csrc tests pyproject.toml "$work"
rm -f "$work"/cache_core/*.so
cp "$work"/build/cache_core/_native*.so "$work/cache_core"
cd "$work"
tests=(tests/cache_core/test_native.py tests/cache_core/test_native_codecs.py
    tests/cache_core/test_native_fuzz.py tests/cache_core/test_native_memory.py
    tests/cache_core/test_cuda_emulation.py tests/cache_core/test_cuda_failures.py
    tests/cache_core/test_cuda_refusals.py)
[[ $# -eq 0 ]] || tests=("$@")
# Before the tests, since no compiler wants to be preloaded with these.
export LMCACHE_SANITIZE=1
"$python" tests/cuda_emulation/build.py >/dev/null
# An editable install would find its own build first. Python itself leaks on purpose.
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_path="$work/report" \
    UBSAN_OPTIONS=print_stacktrace=1:log_path="$work/report" \
    LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)" \
    "$python" - "${tests[@]}" <<'PY'
import sys

sys.meta_path = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
sys.path.insert(0, ".")
import pytest  # noqa: E402

from cache_core import _native  # noqa: E402

assert _native.__file__.startswith(sys.path[0]) or "/cache_core/" in _native.__file__
print("testing", _native.__file__)
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
PY

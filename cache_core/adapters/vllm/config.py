"""Defines what a user may set in ``kv_connector_extra_config``."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from cache_core.blend.certificate import DEFAULT_RATIO
from cache_core.memory_limits import size_in_bytes
from cache_core.plan import PLACEMENTS, Placement
from cache_core.policies import POLICIES
from cache_core.transfer.codec import CODECS

LoadMode = Literal["auto", "sync", "async"]
Weights = Literal["watched", "fixed"]
logger = logging.getLogger("vllm.lmcache")

_SIZES = ("cpu_size", "disk_size", "prefetch_size")
_COUNTS = ("chunk_tokens", "threads", "min_load_tokens")


@dataclass(frozen=True, slots=True)
class ConnectorOptions:
    """The connector's settings. Sizes are in bytes and of each worker: with tensor parallelism
    every rank has its own.

    ``load``: ``sync`` loads inside the step that needs the KV, ``async`` between steps while other
    requests run, ``auto`` chooses (between steps wherever vLLM runs ahead, see :func:`runs_ahead`).
    ``layerwise`` loads and saves layer by layer beside the forward pass. A hit shorter than
    ``min_load_tokens`` is recomputed. ``trace`` is a file to record requests in (see
    :mod:`cache_core.trace_writer`). ``salt`` separates caches, like a tenant's. ``weights`` are
    ``watched``, or promised to be ``fixed`` as long as the process lives.
    """

    chunk_tokens: int = 32
    cpu_size: int = 2 << 30
    disk_size: int = 0
    disk_path: str = ""
    remote: str = ""
    policy: str = "lru"
    placement: Placement = "write_on_insertion"
    salt: str = ""
    weights: Weights = "watched"
    weights_id: str = ""
    """A name for the weights, where neither files nor a commit say what they are; unique to
    them."""
    trace: str = ""
    load: LoadMode = "auto"
    layerwise: bool = False
    threads: int = 1
    min_load_tokens: int = 1
    blend: bool = False
    """Whether segments of a prompt are reused wherever they stand; needs ``--worker-cls``, see
    docs."""
    blend_find: bool = False
    """Whether known segments are looked for in requests that name none."""
    blend_ratio: float = DEFAULT_RATIO
    """The share of reused tokens that is computed anew."""
    blend_certificate: str = ""
    """The file of ``lmcache verify blend`` that says that this model passed its gates. Empty: it is
    looked for in ``~/.cache/lmcache-bench/blend``."""
    blend_unverified: bool = False
    """Whether a model is blended without a certificate."""
    codec: str = "none"
    """The form of KV in tiers: ``none``, as it is; ``fp8`` or ``int8``, lossy, in a byte an
    item."""
    transfer_file: str = ""
    """The file of ``lmcache probe --transfer``, with the speeds of this GPU's ways of moving KV."""
    wait_s: float = 1.0
    """The seconds that a request waits for chunks being stored, or for a remote's answer."""
    prefetch_size: int | None = None
    """The bytes of the cpu tier that chunks may take which move there from slower tiers for
    requests that wait, and were not used yet; None: a quarter of it. 0: none move."""

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> ConnectorOptions:
        """Reads the options from what the user has set. Raises ``ValueError`` naming the setting
        and what it may be."""
        known = {field.name: field for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                raise _wrong(name, f"is not known; these are: {', '.join(known)}")
            values[name] = _value(name, value)
        options = cls(**values)
        if options.disk_size and not options.disk_path:
            raise _wrong("disk_size", "needs disk_path, a folder")
        if not (options.cpu_size or options.disk_size or options.remote):
            raise _wrong("cpu_size", "is 0 and there is no other tier: nothing could be kept")
        if options.codec != "none" and options.prefetch_size:
            raise _wrong("prefetch_size", "needs codec none: coded again, KV would lose more")
        return options

    @property
    def prefetch_bytes(self) -> int:
        """Returns how many bytes of the cpu tier a prefetch may take, at most half of it."""
        if self.codec != "none":
            return 0
        wanted = self.cpu_size // 4 if self.prefetch_size is None else self.prefetch_size
        return min(wanted, self.cpu_size // 2)

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Returns the names of the tiers in use, fastest first."""
        given = (("cpu", self.cpu_size), ("disk", self.disk_size), ("remote", self.remote))
        return tuple(name for name, value in given if value)

    def between_steps(self, tiers: Container[str], busy: bool) -> bool:
        """Returns whether a hit in these tiers is loaded between steps; ``busy`` if others run."""
        if self.load != "auto":
            return self.load == "async"
        # A load inside a step holds up everyone in it; one between steps costs a step more. And
        # a server may take its time: who comes meanwhile must not wait for it.
        return busy or "remote" in tiers

    @property
    def lasting(self) -> bool:
        """Returns whether any tier outlives the process."""
        return bool(self.disk_size or self.remote)

    @property
    def folder(self) -> Path:
        """Returns the disk tier's folder; a worker's own lies below it."""
        return Path(self.disk_path).expanduser()


def runs_ahead(vllm_config: Any, options: ConnectorOptions) -> bool:
    """Returns whether vLLM schedules steps before it knows how the last one went. Then it can't
    take back what was computed on top of a load inside a step that failed: raises ``ValueError``
    for options that want such loads."""
    config = vllm_config.scheduler_config
    why = ""
    if config.async_scheduling:
        why = "async scheduling (--no-async-scheduling turns it off)"
    elif vllm_config.use_v2_model_runner:
        why = "model runner V2 (VLLM_USE_V2_MODEL_RUNNER=0 turns it off)"
    elif vllm_config.max_concurrent_batches > 1:
        why = "pipeline parallelism"
    if why and options.load == "sync":
        raise _wrong("load", f'is "sync", which gives wrong tokens with {why}; use "auto"')
    if why and options.blend:
        raise _wrong("blend", f"loads inside a step, which gives wrong tokens with {why}")
    return bool(why)


TESTED_VLLM = ("0.32",)
"""The versions of vLLM with which this connector's tests were run."""


def warn_untested(version: str = "") -> None:
    """Logs a warning where vLLM's version is none that the connector was tested with."""
    if not version:
        import vllm

        version = str(vllm.__version__)
    if not any(version.startswith(f"{tested}.") for tested in TESTED_VLLM):
        logger.warning(
            "vLLM %s: this connector was tested with %s; run its tests (make vllm test) before you"
            " rely on it, or use one of these",
            version,
            " and ".join(TESTED_VLLM),
        )


def _value(name: str, value: Any) -> Any:
    if name in _SIZES:
        try:
            return size_in_bytes(str(value))
        except ValueError as error:
            raise _wrong(name, str(error)) from None
    if name in _COUNTS:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _wrong(name, f"is {value!r}; it must be a whole number of at least 1")
        return value
    if name == "wait_s":
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e6:
            raise _wrong(name, f"is {value!r}; it must be seconds, 0 or more")
        return float(value)
    if name == "blend_ratio":
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise _wrong(name, f"is {value!r}; it must be a number from 0 to 1")
        return float(value)
    if name in ("layerwise", "blend", "blend_find", "blend_unverified"):
        if not isinstance(value, bool):
            raise _wrong(name, f"is {value!r}; it must be true or false")
        return value
    choices = {"policy": tuple(POLICIES), "placement": PLACEMENTS, "load": get_args(LoadMode)}
    choices |= {"codec": CODECS, "weights": get_args(Weights)}
    if name in choices and value not in choices[name]:
        raise _wrong(name, f"{value!r} is not known; use one of {', '.join(choices[name])}")
    if not isinstance(value, str):
        raise _wrong(name, f"is {value!r}; it must be text")
    return cast(Any, value)


def _wrong(name: str, what: str) -> ValueError:
    return ValueError(f"kv_connector_extra_config: {name} {what}")

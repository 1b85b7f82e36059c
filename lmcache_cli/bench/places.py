"""Places outside this process, looked at before a model is loaded."""

from __future__ import annotations

from cache_core.tiers import TierError
from cache_core.tiers.plugin import find_plugin
from cache_core.tiers.remote_url import open_remote
from lmcache_cli.bench.plan import Plan
from lmcache_cli.errors import MissingError, UserError

_WITH_BYTES = ("transformers", "vllm")


def check_places(plan: Plan) -> None:
    """Makes the disk tier's folder and asks the remote whether it is there, both only if an engine
    will use them. Raises ``UserError`` for what can't be used, ``MissingError`` for a server that
    does not answer."""
    options = plan.options
    if options.engine not in _WITH_BYTES:
        return
    if options.disk_path is not None:
        try:
            options.disk_path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"--disk-path: {options.disk_path} can't be used: {error.strerror or error}"
            ) from error
    if options.remote:
        _check_remote(options.remote)


def _check_remote(url: str) -> None:
    try:
        if "://" not in url:
            find_plugin(url)
            return
        remote = open_remote(url, chunk_bytes=1)
    except TierError as error:
        raise UserError(f"--remote: {error}") from error
    try:
        if not url.startswith("mooncake"):  # to ask it takes as long as to join it
            remote.ping()
    except TierError as error:
        raise MissingError(f"--remote: {error}") from error
    finally:
        remote.close()

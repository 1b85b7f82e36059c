"""The vLLM engine: a ``vllm serve`` of our own for each cell, driven as any endpoint is."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache_core.blend.certificate import Subject
from cache_core.layout import KVLayout
from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.capacity import chunks_per_tier
from lmcache_cli.engines.http.completions import Completion
from lmcache_cli.engines.http.endpoint import Endpoint
from lmcache_cli.engines.http.engine import (
    REQUEST_NAME,
    SALT_TOKENS,
    OpenAISession,
    Salts,
    read_tokenizer,
    warm,
)
from lmcache_cli.engines.http.settings import ServerSettings
from lmcache_cli.engines.vllm.flags import (
    POLL_S,
    flag_value,
    mode_flags,
    own_cache_flags,
    platform,
    refuse_cell,
)
from lmcache_cli.engines.vllm.server import (
    LMCacheServer,
    ServerError,
    VllmServer,
    vllm_command,
    vllm_on_cpu,
)
from lmcache_cli.errors import UserError
from reports.sample import Sample
from workloads.request import Request

_REUSED_KINDS = ("document", "passage")
"""Parts of a prompt that blend may reuse anywhere."""
_PROCESS_BYTES = 3 << 29  # what an API server and an engine core take, without model and KV
_RECORD_S = 10.0  # a record is written when the request ends: far beyond what that takes
_WARM_TOKENS = 2048  # as many as vLLM computes in a step
_SERVERS = {"lmcache": LMCacheServer}
"""The server process that a foreign cache has beside vLLM, by reuse mode."""
_FOREIGN_TIER = {"vllm": "device", "offload": "cpu", "lmcache": "cpu"}


class VllmEngine:
    """An engine (:class:`lmcache_cli.engines.engine.Engine`) of vLLM servers. On a CPU those of all
    cells are up at once (one that has rested uses no CPU); on a GPU, whose memory one fills, one at
    a time."""

    name = "vllm"

    def __init__(self, model: str | None, dtype: str, serving: ServerSettings) -> None:
        vllm_command()
        self.cpu = vllm_on_cpu()
        self.interleaves = self.cpu
        self.serving = serving
        self.model, self.folder = _source(model)
        self._flags, self.environment = platform(self.cpu, dtype)
        self.config = _config(self.folder)
        self._dtype = self._flags[1]
        if self._dtype == "auto":
            kept = getattr(self.config, "dtype", None) or "bfloat16"
            self._dtype = str(kept).removeprefix("torch.")
        (self.encode, self.bos), self.decode = read_tokenizer(self.folder)
        from lmcache_cli.engines.transformers.models import read_chat_frame

        self.frame = read_chat_frame(self.folder)
        self.max_context = _context(self.config, serving.args) - SALT_TOKENS
        self._opened = 0
        self._started = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        self._up: list[VllmSession] = []
        self._last: tuple[VllmSession | None, float] = None, 0.0

    def layout(self, chunk_tokens: int) -> KVLayout:
        """Returns the KV layout of this model for a chunk length."""
        config = self.config
        heads = config.num_attention_heads
        return KVLayout(
            config.num_hidden_layers,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            self._dtype,
            chunk_tokens,
        )

    def token_bytes(self) -> int:
        return self.layout(1).token_bytes

    def blend_subject(self) -> Subject:
        """Returns the subject of a certificate for blend of this model. Reads all weights of a
        folder."""
        from lmcache_cli.engines.transformers.models import blend_subject

        return blend_subject(self.model, self.folder, self.config, self._dtype)

    def blend_bos(self) -> int | None:
        from lmcache_cli.engines.transformers.models import configured_bos

        return configured_bos(self.bos, self.config)

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        refuse_cell(spec, self.serving.args, self.cpu)
        mode_flags(spec, Path())  # finds what is missing, before anything starts
        return chunks_per_tier(spec, self.layout(spec.chunk_tokens)) if spec.ours else {}

    def own_room(self) -> int | None:
        """Returns the bytes of KV for which servers have room; None if that is not known: on a GPU
        it is what a server finds when it starts."""
        if not self.cpu:
            return None
        return int(float(self.environment["VLLM_CPU_KVCACHE_SPACE"]) * 2**30)

    def session_bytes(self) -> int:
        if not self.interleaves:
            return 0
        weights = sum(file.stat().st_size for file in Path(self.folder).glob("*.safetensors"))
        return _PROCESS_BYTES + weights + (self.own_room() or 0)

    def open(self, spec: CacheSpec, max_tokens: int) -> VllmSession:
        self._opened += 1
        stem = self.serving.folder / f"vllm-{self._started}-{self._opened}-{_name(spec)}"
        trace = stem.with_suffix(".jsonl")
        longest = max_tokens + SALT_TOKENS
        flags, environment = mode_flags(spec, trace)
        flags += own_cache_flags(spec, self.token_bytes(), longest)
        flags += [*self._flags, "--served-model-name", self.model, "--enable-prompt-tokens-details"]
        environment = self.environment | environment
        server = VllmServer(
            [vllm_command(), "serve", self.folder, *flags, *self.serving.args],
            environment,
            stem.with_suffix(".log"),
        )
        peer = None
        if beside := _SERVERS.get(spec.mode):
            peer = beside(spec, environment, stem.with_suffix(".cache.log"))
        return VllmSession(self, spec, server, trace, peer, longest)

    def bring_up(self, session: VllmSession) -> None:
        """Starts the session's server, if it is not up, and stops another one in its way; else
        waits until others rest."""
        if session in self._up:
            self.rest(session)
            return
        if not self.interleaves:
            for other in list(self._up):
                self.bring_down(other)
        self._up.append(session)
        session.start()

    def bring_down(self, session: VllmSession) -> None:
        """Stops the session's server. Idempotent."""
        if session in self._up:
            self._up.remove(session)
        session.stop()

    def served(self, session: VllmSession) -> None:
        """Notes that a session's server has just worked."""
        self._last = session, time.monotonic()

    def rest(self, session: VllmSession) -> None:
        """Waits until the workers of another session's server sleep: they take a core till then."""
        last, at = self._last
        if last is not session:
            time.sleep(max(0.0, at + POLL_S - time.monotonic()))

    def warm_up(self, tokens: int) -> None:
        """Does nothing: each server is warmed when it starts."""

    def facts(self) -> dict[str, object]:
        return {
            "engine": self.name,
            "model": self.model,
            "dtype": self._dtype,
            "device": "cpu" if self.cpu else "cuda",
            "kv_bytes_per_token": self.token_bytes(),
            "max_context": self.max_context,
            "flags": [*self._flags, *self.serving.args],
            "servers": "all cells at once" if self.interleaves else "one at a time",
            "hits": "prefix: our connector's record; else the server's usage",
        }

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        for session in list(self._up):
            self.bring_down(session)


class VllmSession(OpenAISession):
    """A session of one cell: a server of its own, at an endpoint as any other. ``peer`` is the
    process that keeps its KV, if that is another; ``longest`` the tokens of the longest request
    that will come."""

    def __init__(
        self,
        engine: VllmEngine,
        spec: CacheSpec,
        server: VllmServer,
        trace: Path,
        peer: LMCacheServer | None,
        longest: int,
    ) -> None:
        self._longest = longest
        salts = Salts(engine.encode, engine.bos, spec.salt)
        super().__init__(self._connected, salts, None, _FOREIGN_TIER.get(spec.mode, "device"))
        self.engine, self.spec, self.server, self._peer = engine, spec, server, peer
        self._record = HitRecord(trace) if spec.ours else None
        self._endpoint: Endpoint | None = None

    def start(self) -> None:
        """Starts the server and sends it a first prompt. Raises ``ServerError``."""
        engine, serving = self.engine, self.engine.serving
        if self._record is not None:
            self._record.restart()
        serving.say(f"starting vLLM for {_name(self.spec)} (log: {self.server.log})")
        connector: list[str] = []
        if self._peer is not None:
            self._peer.start(serving.start_s, serving.say)
            connector = self._peer.connector()
        self.server.start(serving.start_s, serving.say, connector)
        endpoint = Endpoint(self.server.url, engine.model, "", serving.silence_s)
        self._endpoint = endpoint
        if self._peer is not None:
            self._peer.note_segments(self.server.group())
        endpoint.agree([list(engine.encode("Hello, how are you?"))])
        # What is computed for the first time takes longer: so many rows, a tier's memory.
        tokens = min(_WARM_TOKENS, self._longest - 2 * SALT_TOKENS)
        warm(endpoint, Salts(engine.encode, engine.bos, f"warm {self.spec.salt}"), tokens)
        engine.served(self)

    def stop(self) -> None:
        """Stops the server. Idempotent."""
        if self._endpoint is not None:
            self._endpoint.close()
            self._endpoint = None
        if self._peer is None:
            self.server.stop()
            return
        try:
            self._peer.note_segments(self.server.group())
            self.server.stop()
        finally:
            self._peer.stop()

    def ready(self) -> None:
        self.engine.bring_up(self)

    def sample(
        self, request: Request, prompt_tokens: int, due: float, answer: Completion, name: str
    ) -> Sample:
        sample = super().sample(request, prompt_tokens, due, answer, name)
        self.engine.served(self)
        # Without its cache vLLM goes on, and computes what it should have found.
        death = self._peer.death() if self._peer is not None else ""
        death = death or (self.server.death() if answer.lost else "")
        return replace(sample, error=f"{sample.error}; {death}") if death else sample

    def more(self, request: Request, prompt_tokens: int) -> Mapping[str, object]:
        if self.spec.blend is None:
            return {}
        # The salt stands in front of everything but BOS.
        shift = prompt_tokens - len(request.token_ids)
        segments = [
            [part.start + shift, part.end + shift]
            for part in request.segments
            if part.kind in _REUSED_KINDS
        ]
        ours = {"segments": segments, "ratio": self.spec.blend.ratio}
        return {"kv_transfer_params": {"lmcache": ours}}

    def hits(self, answer: Completion, name: str) -> dict[str, int]:
        if self._record is None or answer.error is not None:
            return super().hits(answer, name)
        found = self._record.find(name, _RECORD_S)
        if found is None:
            raise ServerError(
                f"engine vllm: the connector recorded nothing for request {name}, so its hits are"
                f" not known; the server's log is {self.server.log}"
            )
        return {tier: found.get(tier, 0) for tier in ("device", *self.spec.tiers)}

    def complete(self, ids: Sequence[int], max_tokens: int) -> tuple[list[float], dict[str, int]]:
        """Has the server answer a prompt as it is, without salt tokens. Returns the seconds from
        sending it to each token, and the tokens of the prompt that were hit by tier. Raises
        :class:`ServerError`."""
        self.engine.rest(self)
        name = self.request_id(0)
        self._sent += 1
        answer = self._connected().complete(ids, max_tokens, name)
        self.engine.served(self)
        if answer.error is not None:
            death = self.server.death() if answer.lost else ""
            raise ServerError(f"engine vllm: {answer.error}{death and '; '}{death}")
        return [at - answer.sent_s for at in answer.token_s], self.hits(answer, name)

    def chunk_bytes(self) -> int:
        if not self.spec.ours:
            return 0
        return self.engine.layout(self.spec.chunk_tokens).chunk_bytes

    def close(self) -> None:
        self.engine.bring_down(self)
        if self._record is not None:
            self._record.restart()

    def _connected(self) -> Endpoint:
        if self._endpoint is None:
            raise ServerError("engine vllm: the server is not up")
        return self._endpoint


def _name(spec: CacheSpec) -> str:
    """Returns the name of a cell for log files: ``prefix-64-cpu``."""
    return "-".join([spec.mode, *([str(spec.chunk_tokens)] if spec.ours else []), *spec.tiers])


def _source(model: str | None) -> tuple[str, str]:
    """Returns (name, folder or hub id) of the model for ``vllm serve``."""
    if model is not None:
        return model, model
    from lmcache_cli.engines.transformers.models import embedded_source

    name, _, folder, extra = embedded_source()
    if extra:
        raise UserError(
            "engine vllm: the embedded model must be converted for it, but neither"
            " $XDG_CACHE_HOME nor ~/.cache can be written; name a model folder with --model"
        )
    return name, folder


def _config(source: str) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(source).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"--model: {source!r} is neither a model folder nor an id that can be fetched from here"
        ) from error


def _context(config: Any, args: Sequence[str]) -> int:
    """Returns the context length: of ``--max-model-len``, else the model's."""
    given = flag_value(args, "--max-model-len")
    if given.isdecimal():
        return int(given)
    return int(config.max_position_embeddings)


class HitRecord:
    """The record of hits that our connector writes: one line of JSON per request that ended."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.restart()

    def restart(self) -> None:
        """Removes the file: a connector makes it anew."""
        self.path.unlink(missing_ok=True)
        self._hits: dict[str, dict[str, int]] = {}
        self._read = 0

    def find(self, name: str, limit_s: float) -> dict[str, int] | None:
        """Returns the prompt tokens by tier that the request sent under ``name`` hit; None if that
        is not written within ``limit_s``. vLLM puts the name into an id of its own."""
        end = time.monotonic() + limit_s
        while name not in self._hits and time.monotonic() < end:
            if not self._advance():
                time.sleep(0.005)
        return self._hits.pop(name, None)

    def _advance(self) -> bool:
        """Reads whole lines that are new; False if there are none."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            if found := REQUEST_NAME.search(str(entry.get("id", ""))):
                self._hits[found.group()] = dict(entry["hits"])
        return bool(whole)

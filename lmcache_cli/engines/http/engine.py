"""An engine that is any server with OpenAI's completions API, as it is: we send requests and read
the clock."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from lmcache_cli.engines.cache_spec import CacheSpec
from lmcache_cli.engines.capacity import CachedSession
from lmcache_cli.engines.engine import Load
from lmcache_cli.engines.http.clients import LoopLag, refuse_saturated
from lmcache_cli.engines.http.completions import Completion
from lmcache_cli.engines.http.endpoint import Endpoint
from lmcache_cli.engines.http.settings import ServerSettings, api_key, server_root
from lmcache_cli.errors import MissingError, UserError
from reports.sample import Sample
from workloads.request import Request

SALT_TOKENS = 8
"""The number of tokens put before every prompt, other ones in each cold start: what earlier runs
left can't be hit."""
REQUEST_NAME = re.compile(r"lmcache-[0-9a-f]{12}-\d+")
"""The pattern of the names that :meth:`OpenAISession.request_id` makes."""
_LOST_IN_A_ROW = 3
_DIGEST_IDS = 4


class OpenAIEngine:
    """An engine (:class:`lmcache_cli.engines.engine.Engine`) over a running server, whose own cache
    is the only one."""

    name = "openai"
    interleaves = True

    def __init__(self, model: str | None, serving: ServerSettings) -> None:
        self.base: Endpoint | None = None
        self.endpoint = Endpoint(server_root(serving.url), model, api_key(), serving.silence_s)
        try:
            self._connect(model)
            if serving.base_url:
                root = server_root(serving.base_url)
                self.base = Endpoint(root, model, api_key(), serving.silence_s)
                self._connect_base(self.base)
        except BaseException:
            self.close()
            raise

    def _connect(self, model: str | None) -> None:
        endpoint = self.endpoint
        self.decode: Callable[[Sequence[int]], str] | None = None
        served = endpoint.tokenizer()
        self.tokenizer = "the server's /tokenize"
        if served is None:
            served, self.decode = read_tokenizer(model or endpoint.model)
            self.tokenizer = f"of {model or endpoint.model}"
        self.encode, self.bos = served
        # A server does not tell its template.
        self.frame = ("", "")
        self.model = endpoint.model
        self.max_context = endpoint.max_context - SALT_TOKENS
        hello = list(self.encode("Hello, how are you?"))
        endpoint.agree([hello, self.decode(hello)] if self.decode else [hello])
        self._opened: Counter[str] = Counter()

    def _connect_base(self, base: Endpoint) -> None:
        """Refuses a second server that would not be asked the same."""
        text = "Hello, how are you?"
        hello = list(self.encode(text))
        if base.model != self.model:
            raise UserError(
                f"--base-url: {base.root} serves {base.model}, and {self.endpoint.root} serves"
                f" {self.model}; start both with the same model (--served-model-name)"
            )
        served = base.tokenizer()
        if served is not None and list(served[0](text)) != hello:
            raise UserError(
                f"--base-url: {base.root} and {self.endpoint.root} have different tokenizers: what"
                " they would be sent is not the same"
            )
        self.max_context = min(self.max_context, base.max_context - SALT_TOKENS)
        base.agree([hello, self.decode(hello)] if self.decode else [hello])

    def token_bytes(self) -> int:
        """Returns 0: the bytes are not known, because the KV is the server's."""
        return 0

    def tier_capacity(self, spec: CacheSpec) -> dict[str, int | None]:
        return {}

    def session_bytes(self) -> int:
        return 0

    def open(self, spec: CacheSpec, max_tokens: int) -> OpenAISession:
        # Two servers get the same prompts; of one server nothing may be alike but a cell's own.
        kind = spec.mode if self.base is not None else ""
        self._opened[kind] += 1
        salts = Salts(self.encode, self.bos, f"{spec.salt} {self._opened[kind]}")
        endpoint = self.base if spec.mode == "base" and self.base is not None else self.endpoint
        return OpenAISession(lambda: endpoint, salts, self.decode, apart=not spec.reuse)

    def warm_up(self, tokens: int) -> None:
        for endpoint in (self.endpoint, self.base):
            if endpoint is not None:
                warm(endpoint, Salts(self.encode, self.bos, f"warm {time.time_ns()}"), tokens)

    def facts(self) -> dict[str, object]:
        return {
            "engine": self.name,
            "model": self.model,
            "max_context": self.max_context,
            "url": self.endpoint.root,
            **({"base_url": self.base.root} if self.base else {}),
            "owned_by": self.endpoint.kind,
            "tokenizer": self.tokenizer,
            **dialect_facts(self.endpoint),
            "hits": "the server's usage; the tier is not known and stands as device",
        }

    def now(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        self.endpoint.close()
        if self.base is not None:
            self.base.close()


class Salts:
    """The tokens that stand before every prompt, after BOS; new ones after each :meth:`renew`."""

    def __init__(self, encode: Callable[[str], Sequence[int]], bos: int | None, name: str) -> None:
        self._encode, self._bos, self._name = encode, bos, name
        self._count = 0
        self.renew()

    def renew(self) -> None:
        """Makes new salt tokens: what was sent under the old ones shares no prefix with what
        comes."""
        self._count += 1
        digest = blake2b(f"{self._name} {self._count}".encode(), digest_size=16).hexdigest()
        self.ids = [int(token) for token in self._encode(digest)][:SALT_TOKENS]

    def prompt(self, ids: Sequence[int]) -> list[int]:
        """Returns the prompt with the salt tokens in it, after BOS."""
        known = [int(token) for token in ids]
        cut = 1 if self._bos is not None and known[:1] == [self._bos] else 0
        return known[:cut] + self.ids + known[cut:]


class OpenAISession(CachedSession):
    """A session of one cell: the server at an endpoint, which is up all the time and whose cache
    tells us nothing. ``tier`` is where its hits are reported to be. ``apart``: each request has
    salt tokens of its own, so that the server has nothing of it. What earlier starts left there is
    out of reach: each has other salt tokens."""

    def __init__(
        self,
        endpoint: Callable[[], Endpoint],
        salts: Salts,
        decode: Callable[[Sequence[int]], str] | None = None,
        tier: str = "device",
        apart: bool = False,
    ) -> None:
        super().__init__(None)
        self._apart = apart
        self.endpoint, self.salts, self.decode, self.tier = endpoint, salts, decode, tier
        self._lost = 0
        self._sent = 0

    def serve(self, requests: Sequence[Request], load: Load) -> Iterator[Sample]:
        endpoint = self.endpoint()
        prompts = []
        for request in requests:
            if self._apart:
                self.salts.renew()
            prompts.append(self.salts.prompt(request.token_ids.tolist()))
        # Made before the clock starts: the JSON of a long prompt takes a millisecond.
        bodies = [
            endpoint.body(self._shown(ids), r.max_tokens, self.more(r, len(ids)))
            for ids, r in zip(prompts, requests, strict=True)
        ]
        names = [self.request_id(i) for i in range(len(requests))]
        self._sent += len(requests)

        async def send(i: int) -> Completion:
            if self._lost >= _LOST_IN_A_ROW:
                now = time.perf_counter()
                lost = f"not sent: {self._lost} requests in a row got no answer"
                return Completion(now, now, error=lost, lost=True)
            answer = await endpoint.send(bodies[i], names[i])
            self._lost = self._lost + 1 if answer.lost else 0
            return answer

        lag = LoopLag()
        samples = []
        answers = endpoint.clients.serve(requests, load, send, lag)
        for i, (due, answer) in enumerate(answers):
            sample = self.sample(requests[i], len(prompts[i]), due, answer, names[i])
            samples.append(sample)
            yield sample
        refuse_saturated(samples, lag.late_s, load.concurrency is None)

    def more(self, request: Request, prompt_tokens: int) -> Mapping[str, object]:
        """Returns further fields of the request's body."""
        return {}

    def request_id(self, index: int) -> str:
        """Returns the name of the ``index``-th of the requests that are to be sent, as the server
        sees it."""
        digest = blake2b(repr(self.salts.ids).encode(), digest_size=6).hexdigest()
        return f"lmcache-{digest}-{self._sent + index}"

    def sample(
        self, request: Request, prompt_tokens: int, due: float, answer: Completion, name: str
    ) -> Sample:
        """Returns the answer as a sample."""
        times = tuple(answer.token_s)
        count = answer.output_tokens
        return Sample(
            request_id=request.id,
            session=request.session,
            prompt_tokens=answer.prompt_tokens or prompt_tokens,
            output_tokens=len(answer.ids) or (len(times) if count is None else count),
            scheduled_s=due,
            sent_s=answer.sent_s,
            first_token_s=times[0] if times else answer.finished_s,
            finished_s=answer.finished_s,
            token_s=times,
            hit_tokens=self.hits(answer, name),
            output_ids=tuple(answer.ids) or _digest(answer.text),
            error=answer.error,
        )

    def hits(self, answer: Completion, name: str) -> dict[str, int]:
        """Returns the number of prompt tokens by tier that request ``name`` did not compute."""
        return {self.tier: answer.cached_tokens} if answer.error is None else {}

    def clear(self) -> None:
        self.salts.renew()
        # A server that was lost may be back: it gets one request to show it.
        self._lost = min(self._lost, _LOST_IN_A_ROW - 1)

    def chunk_bytes(self) -> int:
        return 0

    def _shown(self, ids: Sequence[int]) -> Sequence[int] | str:
        if self.endpoint().dialect.ids:
            return ids
        assert self.decode is not None, "agreed on text without a tokenizer"
        return self.decode(ids)


def warm(endpoint: Endpoint, salts: Salts, tokens: int) -> None:
    """Sends one prompt of ``tokens`` that shares nothing with any other. Raises ``UserError`` if it
    fails. A server that takes text only gets none: its first short prompt has warmed it."""
    if not endpoint.dialect.ids:
        return
    filler = (salts.ids * (tokens // len(salts.ids) + 1))[: max(1, tokens - SALT_TOKENS)]
    answer = endpoint.complete(salts.prompt(filler), 2, "lmcache-warm")
    if answer.error is not None:
        raise UserError(f"{endpoint.root}: warming up failed: {answer.error}")


def dialect_facts(endpoint: Endpoint) -> dict[str, object]:
    """Returns how we talk to the server at the endpoint, for the run file."""
    dialect = endpoint.dialect
    return {
        "prompts": "token ids" if dialect.ids else "text",
        "ignore_eos": dialect.extended,
        "outputs": "token ids" if dialect.names_tokens else "digest of the text",
        "token_times": "per token" if dialect.names_tokens else "per event",
    }


def read_tokenizer(
    name: str,
) -> tuple[tuple[Callable[[str], Sequence[int]], int | None], Callable[[Sequence[int]], str]]:
    """Returns ((text to ids, BOS), ids to text) of a model folder or hub id. Raises ``UserError``
    if it can't be loaded, ``MissingError`` without transformers."""
    try:
        import transformers
    except ImportError as error:
        raise MissingError(
            f"the tokenizer of {name} needs transformers; run: pip install transformers"
        ) from error
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no tokenizer: the server has no /tokenize, and {name!r} is neither a model folder"
            " nor an id that can be fetched from here; give one with --model"
        ) from error
    tokenizer.model_max_length = 1 << 60  # documents are cut later
    first = tokenizer("").input_ids

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    return (encode, int(first[0]) if first else None), decode


def _digest(text: str) -> tuple[int, ...]:
    """Returns numbers that stand for the output's ids where the server does not name its tokens:
    equal if the texts are."""
    if not text:
        return ()
    digest = blake2b(text.encode(), digest_size=4 * _DIGEST_IDS).digest()
    words = [digest[i : i + 4] for i in range(0, len(digest), 4)]
    return tuple(int.from_bytes(word, "big") >> 1 for word in words)

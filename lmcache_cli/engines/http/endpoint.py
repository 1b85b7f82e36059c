"""A server with OpenAI's completions API: its model, and which extensions of the API it takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from lmcache_cli.engines.http.clients import Clients
from lmcache_cli.engines.http.completions import Completion, ask_json, complete, scrubbed
from lmcache_cli.errors import MissingError, UserError

UNKNOWN_CONTEXT = 1 << 20
_LOCAL = ("127.0.0.1", "localhost", "::1")
_MOST_TRIES = 4


@dataclass(frozen=True, slots=True)
class Dialect:
    """The form of completion requests that a server takes. ``ids``: prompts as token ids, else as
    text. ``extended``: takes ``ignore_eos`` and ``return_token_ids``, as vLLM does.
    ``names_tokens``: says which tokens it made."""

    ids: bool = True
    extended: bool = True
    names_tokens: bool = True


class Endpoint:
    """One model that is served at one URL. ``root`` is without ``/v1``. Raises ``MissingError`` if
    nobody answers there, and ``UserError`` for a refusal or a model that it does not have."""

    def __init__(self, root: str, model: str | None, key: str, silence_s: float) -> None:
        self.root, self.key = root, key
        self.host = urlsplit(root).hostname or ""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.clients = Clients(headers, silence_s, proxies=self.host not in _LOCAL)
        self.dialect = Dialect()
        try:
            self.model, self.max_context, self.kind = self._model(model)
        except BaseException:
            self.clients.close()
            raise

    def tokenizer(self) -> tuple[Callable[[str], Sequence[int]], int | None] | None:
        """Returns (text to ids, BOS) by the server's own ``/tokenize``; None if it has none."""
        first = self._tokens("a", special=True)
        if first is None:
            return None

        def encode(text: str) -> Sequence[int]:
            ids = self._tokens(text, special=False)
            if ids is None:
                raise UserError(f"{self.root}/tokenize: no longer gives tokens; is it up?")
            return ids

        plain = list(encode("a"))
        bos = first[0] if len(first) > len(plain) and first[0] != plain[0] else None
        return encode, bos

    def agree(self, prompts: Sequence[Sequence[int] | str]) -> None:
        """Finds the richest dialect that the server takes. ``prompts``: a short one as ids and as
        text, or as ids alone. Raises ``UserError`` with the server's own words if it takes none."""
        tries = [(p, extended) for p in prompts for extended in (True, False)][:_MOST_TRIES]
        said = ""
        for prompt, extended in tries:
            self.dialect = Dialect(not isinstance(prompt, str), extended)
            answer = self.complete(prompt, 2, "lmcache-hello")
            if answer.error is None:
                self.dialect = Dialect(self.dialect.ids, extended, bool(answer.ids))
                return
            said = answer.error
            if answer.lost:
                raise MissingError(f"{self.root}: {said}; start the server, or check --url")
            if answer.status in (401, 403):
                break
        raise UserError(f"{self.root}: refuses a completion: {said}{self._hint(answer.status)}")

    def body(
        self,
        prompt: Sequence[int] | str,
        max_tokens: int,
        more: Mapping[str, object] | None = None,
    ) -> bytes:
        """Returns the JSON of a request for a greedy, streamed completion, with ``more`` fields."""
        fields: dict[str, object] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.dialect.extended:
            fields |= {"ignore_eos": True, "return_token_ids": True}
        fields |= more or {}
        return json.dumps(fields, separators=(",", ":")).encode()

    async def send(self, body: bytes, request_id: str) -> Completion:
        """Sends one completion request on the clients' event loop and returns its answer."""
        return await complete(
            self.clients.http, f"{self.root}/v1/completions", body, request_id, self.key
        )

    def complete(self, prompt: Sequence[int] | str, max_tokens: int, request_id: str) -> Completion:
        """Sends one completion request and returns its answer; blocks until that is there."""
        return self.clients.run(self.send(self.body(prompt, max_tokens), request_id))

    def ask(self, path: str, body: object = None) -> tuple[int, Any]:
        """Sends a GET, or a POST of ``body``, to another path and returns (status, document).
        Raises ``MissingError`` if there is no answer."""
        url = f"{self.root}{path}"
        try:
            return self.clients.run(ask_json(self.clients.http, url, body))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = scrubbed(str(error) or "no answer in time", self.key)
            raise MissingError(f"{url}: {why}; start the server, or check --url") from None

    def close(self) -> None:
        """Ends the clients; the server stays."""
        self.clients.close()

    def _model(self, wanted: str | None) -> tuple[str, int, str]:
        """Returns (name, context length, owner) of the model ``wanted``, from ``/v1/models``."""
        status, document = self.ask("/v1/models")
        found = document.get("data") if isinstance(document, dict) else None
        known = [m for m in found or () if isinstance(m, dict) and isinstance(m.get("id"), str)]
        if not known:
            if wanted is not None and status not in (401, 403):
                return wanted, UNKNOWN_CONTEXT, ""  # not every gateway lists its models
            raise UserError(
                f"{self.root}/v1/models: lists no model (HTTP {status})"
                f"{self._hint(status) or '; name one with --model'}"
            )
        names = [m["id"] for m in known]
        if wanted is None and len(names) > 1:
            shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise UserError(f"{self.root} serves {len(names)} models; add --model, one of {shown}")
        # A folder or hub id may stand for its tokenizer only, if the server serves one model.
        chosen = known[names.index(wanted)] if wanted in names else known[0]
        if wanted is not None and wanted not in names and len(names) > 1:
            raise UserError(
                f"--model: {self.root} has no {wanted!r}; it has {', '.join(names[:8])}"
            )
        length = chosen.get("max_model_len")
        context = length if isinstance(length, int) and length > 0 else UNKNOWN_CONTEXT
        return chosen["id"], context, str(chosen.get("owned_by") or "")

    def _tokens(self, text: str, special: bool) -> list[int] | None:
        body = {"model": self.model, "prompt": text, "add_special_tokens": special}
        status, document = self.ask("/tokenize", body)
        ids = document.get("tokens") if status == 200 and isinstance(document, dict) else None
        return ids if isinstance(ids, list) and all(isinstance(i, int) for i in ids) else None

    def _hint(self, status: int) -> str:
        if status not in (401, 403):
            return ""
        return "; the key is refused" if self.key else "; set LMCACHE_API_KEY to the API key"

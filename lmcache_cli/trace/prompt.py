"""Reads what an OpenAI-compatible request asks, as text, messages or tokens, and gets its token
ids."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lmcache_cli.engines.shape import check_named
from lmcache_cli.errors import MissingError, UserError

if TYPE_CHECKING:
    import aiohttp


_TIMEOUT_S = 60.0


class TokenSource(Protocol):
    """Makes token ids of a prompt as the server would."""

    async def token_ids(
        self, model: str, prompt: AskedPrompt, authorization: str | None
    ) -> list[int] | None:
        """Returns the prompt's token ids, or None if this source has none for this prompt."""


class ServerTokens:
    """Gets token ids from ``url``/tokenize, which vLLM has for prompts and for messages. A
    request's own ``authorization`` is sent with it."""

    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self._client = client
        self._url = url
        # A burst of requests must not become a burst of these before the server.
        self._turns = asyncio.Semaphore(4)

    async def token_ids(
        self, model: str, prompt: AskedPrompt, authorization: str | None
    ) -> list[int] | None:
        """Returns the prompt's token ids from the server; None for every failure."""
        import aiohttp

        asked: dict[str, Any] = dict(prompt.options)
        asked["messages" if prompt.kind == "chat" else "prompt"] = prompt.content
        if model:
            asked["model"] = model
        headers = {"Content-Type": "application/json"}
        if authorization:
            headers["Authorization"] = authorization
        try:
            async with (
                self._turns,
                self._client.post(
                    f"{self._url}/tokenize",
                    json=asked,
                    headers=headers,
                    timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S),
                ) as answer,
            ):
                said = await answer.json(content_type=None) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, RecursionError):
            return None
        ids = said.get("tokens") if isinstance(said, dict) else None
        # A server that has a /tokenize of another dialect ignores our field: no tokens, no error.
        if not isinstance(ids, list) or not ids or not all(type(i) is int for i in ids):
            return None
        return ids


class LocalTokens:
    """A Hugging Face tokenizer, by folder or id; its chat template for messages. Raises as
    :func:`load_tokenizer` does."""

    def __init__(self, name: str) -> None:
        # Fast tokenizers refuse a second thread ("Already borrowed").
        self._turn = asyncio.Lock()
        self._tokenizer = load_tokenizer(name)

    async def token_ids(
        self, model: str, prompt: AskedPrompt, authorization: str | None
    ) -> list[int] | None:
        """Returns the prompt's token ids from the tokenizer; None for every failure. Works in a
        thread: a long prompt takes long."""
        try:
            async with self._turn:
                return await asyncio.to_thread(self._encode, prompt)
        except Exception:  # noqa: BLE001  a template raises what its author wrote, text included
            return None

    def _encode(self, prompt: AskedPrompt) -> list[int]:
        options = dict(prompt.options)
        if prompt.kind == "text":
            special = options.get("add_special_tokens", True)
            encoded = self._tokenizer(prompt.content, add_special_tokens=special)
            return [int(i) for i in encoded["input_ids"]]
        # Special tokens are the template's business.
        options.pop("add_special_tokens", None)
        options.pop("mm_processor_kwargs", None)
        more = options.pop("chat_template_kwargs", {})
        going_on = options.get("continue_final_message", False)
        options.setdefault("add_generation_prompt", not going_on)
        messages = [message | {"content": _plain(message)} for message in prompt.content]  # type: ignore[operator, arg-type]
        ids = self._tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=False, **options, **more
        )
        return [int(i) for i in ids]


def load_tokenizer(name: str) -> Any:
    """Loads a Hugging Face tokenizer by folder or id. Raises ``MissingError`` if transformers is
    not installed, ``UserError`` if it can't be loaded: one that is not there is found before
    transformers is imported, which takes seconds."""
    if not Path(name).expanduser().is_dir():
        check_named(name, "--tokenizer", "tokenizer.json")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingError(
            "--tokenizer needs transformers; pip install 'lmcache-bench[transformers]'"
        ) from None
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # noqa: BLE001  it raises whatever its parsers raise
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--tokenizer: {name} can't be loaded ({reason}); give a folder with a tokenizer,"
            " or the id of a model on a hub that is reachable"
        ) from None


def _plain(message: dict[str, Any]) -> object:
    """Joins text in parts as servers do for templates that know only text."""
    content = message.get("content")
    if not isinstance(content, list):
        return content
    texts = [part["text"] for part in content if isinstance(part, dict) and "text" in part]
    return "\n".join(texts) if len(texts) == len(content) else content


Content = str | list[int] | list[dict[str, Any]]

# What decides, beside the prompt itself, which tokens a server makes of it.
_TEXT_OPTIONS = ("add_special_tokens",)
_CHAT_OPTIONS = (
    "add_generation_prompt",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
    "continue_final_message",
    "mm_processor_kwargs",
    "tools",
)


@dataclass(frozen=True, slots=True)
class AskedPrompt:
    """One prompt of a request. ``content`` is a text, token ids, or a chat's messages.
    ``keep_last`` is how many tokens the server keeps (None: all). Two prompts of different ``salt``
    share no KV although their tokens may be equal: tenants, or images with equal placeholders."""

    kind: Literal["text", "tokens", "chat"]
    content: Content = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    keep_last: int | None = None
    salt: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class AskedPrompts:
    """One request body: ``choices`` answers are given for each of ``prompts``."""

    model: str
    prompts: list[AskedPrompt]
    choices: int
    user: str | None


def read_body(body: bytes, chat: bool) -> AskedPrompts:
    """Reads what a request asks. Raises ``ValueError`` if it is nothing that could be recorded; the
    text of the error has nothing of the body in it."""
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the body is no JSON") from None
    if not isinstance(asked, dict):
        raise ValueError("the body is no JSON object")
    options = {
        name: asked[name]
        for name in (_CHAT_OPTIONS if chat else _TEXT_OPTIONS)
        if asked.get(name) is not None
    }
    keep = asked.get("truncate_prompt_tokens")
    keep = keep if isinstance(keep, int) and keep > 0 else None
    tenant = str(asked.get("cache_salt") or "")
    if chat:
        messages = asked.get("messages")
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            raise ValueError("the body has no messages")
        salt = tenant + _media_digest(messages)
        prompts = [AskedPrompt("chat", messages, options, keep, salt)]
    else:
        prompts = [
            AskedPrompt(
                "text" if isinstance(content, str) else "tokens", content, options, keep, tenant
            )
            for content in _contents(asked.get("prompt"))
        ]
    choices, model, user = asked.get("n"), asked.get("model"), asked.get("user")
    return AskedPrompts(
        model if isinstance(model, str) else "",
        prompts,
        choices if isinstance(choices, int) and choices > 0 else 1,
        user if isinstance(user, str) and user else None,
    )


def _contents(prompt: object) -> list[str | list[int]]:
    if isinstance(prompt, str) or _is_tokens(prompt):
        return [prompt]  # type: ignore[list-item]
    several = isinstance(prompt, list) and bool(prompt)
    if several and all(isinstance(part, str) or _is_tokens(part) for part in prompt):  # type: ignore[attr-defined]
        return prompt  # type: ignore[return-value]
    raise ValueError("the body has no prompt of text or token ids")


def _is_tokens(value: object) -> bool:
    # bool is an int to Python, and no token to anybody.
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _media_digest(messages: list[dict[str, Any]]) -> str:
    """Returns a digest of what is not text; empty for pure text. Images are equal placeholders to a
    tokenizer."""
    parts = [
        part
        for message in messages
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if not isinstance(part, str) and not (isinstance(part, dict) and "text" in part)
    ]
    if not parts:
        return ""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

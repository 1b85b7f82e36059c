"""Where token ids come from: the server's own /tokenize, or a tokenizer of ours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from lmcache_cli.errors import MissingError, UserError
from lmcache_cli.recorder.prompt import Prompt

if TYPE_CHECKING:
    import aiohttp

_TIMEOUT_S = 60.0


class TokenSource(Protocol):
    """Makes token ids of a prompt as the server would."""

    async def token_ids(
        self, model: str, prompt: Prompt, authorization: str | None
    ) -> list[int] | None:
        """The ids, or None if this source has none for this prompt."""


class ServerTokens:
    """Asks ``url``/tokenize, which vLLM has for prompts and for messages. A request's own
    ``authorization`` is sent with it."""

    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self._client = client
        self._url = url
        # A burst of requests must not become a burst of these before the server.
        self._turns = asyncio.Semaphore(4)

    async def token_ids(
        self, model: str, prompt: Prompt, authorization: str | None
    ) -> list[int] | None:
        """See :class:`TokenSource`; None for every failure."""
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
    """A Hugging Face tokenizer, by folder or id; its chat template for messages.

    Raises ``MissingError`` if transformers is not installed, ``UserError`` if the tokenizer can't
    be loaded.
    """

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise MissingError(
                "--tokenizer needs transformers; pip install 'lmcache-bench[transformers]'"
            ) from None
        # Fast tokenizers refuse a second thread ("Already borrowed").
        self._turn = asyncio.Lock()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # noqa: BLE001  it raises whatever its parsers raise
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"--tokenizer: {name} can't be loaded ({reason}); give a folder with a tokenizer,"
                " or the id of a model on a hub that is reachable"
            ) from None

    async def token_ids(
        self, model: str, prompt: Prompt, authorization: str | None
    ) -> list[int] | None:
        """See :class:`TokenSource`. Works in a thread: a long prompt takes long."""
        try:
            async with self._turn:
                return await asyncio.to_thread(self._encode, prompt)
        except Exception:  # noqa: BLE001  a template raises what its author wrote, text included
            return None

    def _encode(self, prompt: Prompt) -> list[int]:
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


def _plain(message: dict[str, Any]) -> object:
    """Text in parts as servers give it to templates that know only text."""
    content = message.get("content")
    if not isinstance(content, list):
        return content
    texts = [part["text"] for part in content if isinstance(part, dict) and "text" in part]
    return "\n".join(texts) if len(texts) == len(content) else content

"""What an OpenAI-compatible request asks: one prompt or several, as text, messages or tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
class Prompt:
    """``content`` is a text, token ids, or a chat's messages. ``keep_last`` is how many tokens
    the server keeps (None: all). Two prompts of different ``salt`` share no KV although their
    tokens may be equal: tenants, or images behind equal placeholders."""

    kind: Literal["text", "tokens", "chat"]
    content: Content = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    keep_last: int | None = None
    salt: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request body: ``choices`` answers are given for each of ``prompts``."""

    model: str
    prompts: list[Prompt]
    choices: int
    user: str | None


def read_body(body: bytes, chat: bool) -> Asked:
    """What a request asks. Raises ``ValueError`` if it is nothing that could be recorded; the
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
        prompts = [Prompt("chat", messages, options, keep, salt)]
    else:
        prompts = [
            Prompt("text" if isinstance(content, str) else "tokens", content, options, keep, tenant)
            for content in _contents(asked.get("prompt"))
        ]
    choices, model, user = asked.get("n"), asked.get("model"), asked.get("user")
    return Asked(
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
    """Empty for pure text. Images are equal placeholders to a tokenizer."""
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

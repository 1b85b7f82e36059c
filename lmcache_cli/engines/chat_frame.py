"""What a chat model's template puts around what a user says."""

from __future__ import annotations

from typing import Any

_TURN = "what the user says"


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """The text before and behind a user's turn, up to where the answer begins, without the BOS,
    which prompts have anyway. Empty if ``tokenizer`` has no template."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    turn = [{"role": "user", "content": _TURN}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    before, _, behind = str(text).partition(_TURN)
    return before.removeprefix(tokenizer.bos_token or ""), behind


def read_chat_frame(folder: str) -> tuple[str, str]:
    """The same of the tokenizer in a model's folder, or of a hub id."""
    from transformers import AutoTokenizer

    return chat_frame(AutoTokenizer.from_pretrained(folder))

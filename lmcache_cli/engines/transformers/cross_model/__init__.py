"""Reuse of a base model's KV for its fine-tunes."""

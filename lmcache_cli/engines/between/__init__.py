"""Reuse between models: a base model's KV served to a fine-tune of it."""

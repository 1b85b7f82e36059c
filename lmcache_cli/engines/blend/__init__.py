"""Blend in the transformers engine: reused KV at any place, some of it computed again."""

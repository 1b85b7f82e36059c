"""Reuses KV at any position of a prompt, not only at its start."""

"""Reuse of KV at any place of a prompt, not only at its start."""

"""Verifies whether reused KV is right, and how far approximate reuse is from it."""

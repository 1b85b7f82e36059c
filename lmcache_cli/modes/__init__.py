"""The ways to reuse KV: their flags, the hits to expect, and what refuses them."""

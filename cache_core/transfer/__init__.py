"""Moves KV between an engine's memory and the tiers: codecs, GPUs, and the choice of a way."""

"""Implements the tiered KV cache: a Ledger that decides, tiers that move bytes."""

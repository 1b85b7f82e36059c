"""Implements the connector's side in vLLM's workers: it moves bytes and decides nothing."""

"""Implements blend inside vLLM: what the scheduler plans and what workers compute."""

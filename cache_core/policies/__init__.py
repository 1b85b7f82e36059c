"""Replacement policies, one a file. :data:`cache_core.policy.POLICIES` has them by name."""

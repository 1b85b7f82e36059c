"""Provides the remote tier, and the stores that it can be kept in."""

"""Stored runs, ours and other tools', made comparable."""

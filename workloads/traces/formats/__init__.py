"""Trace formats, one reader each."""

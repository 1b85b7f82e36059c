"""Runs baseline and candidate in turns, until it is decided which is slower."""

"""Runs the threads between a cache and tiers that take their time."""

"""Measurements of this project's own parts; a package so that no other `benchmarks` is found."""

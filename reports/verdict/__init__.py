"""Judges whether something got worse: rules, intervals and verdicts."""

"""Baseline against candidate: run both in turns, until it is decided which is slower."""

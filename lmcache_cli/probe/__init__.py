"""Measures what this machine's tiers can do: figures for sizing and for the simulated engine."""

"""Traces: recorded from a server, shown, converted, made."""

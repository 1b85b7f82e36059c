"""Blend in the embedded engine."""

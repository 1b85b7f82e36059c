"""Declares the flags that commands share."""

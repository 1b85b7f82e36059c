"""Declares the commands, one file each: its flags, and nothing that the flags don't need."""

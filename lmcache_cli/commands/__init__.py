"""One file per command: its flags, and nothing that the flags don't need."""

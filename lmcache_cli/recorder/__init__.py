"""A proxy in front of an OpenAI-compatible server that records what passes, without its text."""

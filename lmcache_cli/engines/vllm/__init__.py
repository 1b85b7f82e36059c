"""vLLM's servers as an engine of the bench."""

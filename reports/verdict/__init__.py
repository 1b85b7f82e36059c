"""Did it get worse? Rules, intervals and verdicts."""

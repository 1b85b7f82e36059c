"""Predicts what a cache would do, without its bytes: curves, replays, costs."""

"""What a cache would do, told without its bytes: curves, replays, costs."""

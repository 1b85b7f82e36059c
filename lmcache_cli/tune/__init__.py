"""``lmcache tune``: how big each tier should be, and what that gives."""

"""Plugs the core into serving engines that run in processes of their own."""

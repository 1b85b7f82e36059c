"""Engines that drive an OpenAI-compatible server."""

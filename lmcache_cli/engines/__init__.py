"""Engines: whatever serves requests and can be measured."""

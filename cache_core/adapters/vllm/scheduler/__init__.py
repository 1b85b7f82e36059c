"""Implements the connector's side in vLLM's scheduler: it decides and moves no byte."""

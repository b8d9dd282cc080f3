"""Remotes: models on other machines, or in other programs, behind an OpenAI-compatible API."""

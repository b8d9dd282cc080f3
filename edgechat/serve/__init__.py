"""OpenAI-compatible HTTP server for editors, scripts and agents."""

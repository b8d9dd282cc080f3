"""The OpenAI HTTP API over an engine of ours: for editors, scripts and agents on this machine."""

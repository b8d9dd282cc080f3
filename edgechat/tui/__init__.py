"""The terminal interface, built with Textual. It uses `Session` and never the engine directly."""

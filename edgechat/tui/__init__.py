"""Terminal user interface, built with Textual. The interface uses `Session` and never the engine directly."""

"""The terminal interface, on Textual. Talks to Session, never to the engine."""

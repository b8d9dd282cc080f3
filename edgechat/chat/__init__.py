"""Conversations: their messages, stores and prompts, and the session that generates replies."""

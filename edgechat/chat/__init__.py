"""Conversations: messages, the store interface, prompts, and the session that generates replies."""

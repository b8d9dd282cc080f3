"""Chooses, plans and loads models; used by the chat, the server and the command line."""

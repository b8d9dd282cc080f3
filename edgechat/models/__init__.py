"""Choosing, planning and loading models; used by the chat, the server and the command line."""

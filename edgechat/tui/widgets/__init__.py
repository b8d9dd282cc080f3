"""Widgets of the chat screen. They import no application or screen, but post messages or call callbacks."""

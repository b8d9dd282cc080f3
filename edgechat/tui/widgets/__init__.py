"""Widgets of the chat screen. They import no application and no screen: they post messages or call back."""

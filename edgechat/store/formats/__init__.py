"""Import and export formats for conversations."""

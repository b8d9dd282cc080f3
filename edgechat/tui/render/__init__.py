"""Layout of conversations as rows of terminal cells, without any Textual application, screen or widget."""

"""Lay out conversations as rows of terminal cells, independently of Textual's applications, screens and widgets."""

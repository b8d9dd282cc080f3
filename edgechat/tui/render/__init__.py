"""Conversations as rows of terminal cells. Imports no application, screen or widget."""

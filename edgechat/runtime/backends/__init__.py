"""Choosing a backend: native bundle, self-tests, verdicts, kernel benchmark."""

"""Prompts and output: chat templates, tool formats, reasoning. The only importer of jinja2."""

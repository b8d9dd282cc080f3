"""Prompts and reply parsing: chat templates, roles, reasoning, tool calls. The only package that imports jinja2."""

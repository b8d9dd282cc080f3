"""Prompts and model output: chat templates, roles, reasoning and tool calls. The only package that imports jinja2."""

"""Conversations as people see them: messages, chat templates, the session. The only importer of jinja2."""

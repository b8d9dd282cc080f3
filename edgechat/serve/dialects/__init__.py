"""Dialects: the HTTP APIs that the server speaks, as translations to and from one internal request and stream."""

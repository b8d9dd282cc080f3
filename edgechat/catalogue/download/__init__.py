"""Resumable HTTP downloads that are hashed during the transfer."""

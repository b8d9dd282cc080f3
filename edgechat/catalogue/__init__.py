"""Models: the curated catalogue, the hub, installed files, downloads and verification."""

"""Speculative decoding: drafters, acceptance rates, step costs, and draft lengths."""

"""Speculative decoding without a draft model: drafters, acceptance rates, step costs, and draft lengths."""

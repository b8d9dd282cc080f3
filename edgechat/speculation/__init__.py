"""Speculative decoding: drafters, acceptance rates, step costs, and draft lengths. Knows no model and no llama.cpp."""

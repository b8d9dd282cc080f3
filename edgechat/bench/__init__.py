"""Benchmarks: paired runs against plain decoding, llama.cpp's tools and stock Textual."""
